"""What runs beside the platform: the training engine, evaluation, data checks, and the serving agent.

Nothing in here imports Django or the platform; both sides speak through `workers.contract`.
"""
