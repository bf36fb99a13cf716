"""The agent beside one vLLM: makes what the engine holds equal to what the platform wants, and proves it."""
