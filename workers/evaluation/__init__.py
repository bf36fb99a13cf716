"""Evaluation: the same rows through a base and an adapter, at the engine that will serve them."""
