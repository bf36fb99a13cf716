"""How a run trades time for memory: chosen before it starts, and one step smaller when that was too much."""

import torch

from workers.contract import TrainSpec
from workers.contract.estimate import PLANS, BaseShape, Device, MemoryPlan, fitting_plan, peak_bytes
from workers.training.available import available_bytes


def choose_plan(
    shape: BaseShape, spec: TrainSpec, pack_tokens: int, longest_tokens: int, device: torch.device
) -> tuple[MemoryPlan, int]:
    """The fastest plan that fits what is free now, and the peak memory in bytes that it should take.

    `pack_tokens` are those of the largest pack, `longest_tokens` those of the longest sample. Where nothing
    should fit the smallest plan is tried: the closed form is no measurement.
    """
    kind: Device = "cuda" if device.type == "cuda" else "cpu"
    free = torch.cuda.mem_get_info(device)[0] if kind == "cuda" else available_bytes()
    plan = fitting_plan(shape, spec, pack_tokens, kind, longest_tokens, free) or PLANS[-1]
    return plan, peak_bytes(shape, spec, plan, pack_tokens, kind, longest_tokens)


def one_step_down(plan: MemoryPlan) -> MemoryPlan | None:
    """The next smaller plan that can be changed to in the middle of a run: its weights stay as they are."""
    smaller = PLANS[PLANS.index(plan) + 1 :]
    return next((each for each in smaller if each.weights == plan.weights), None)


HOST_WORDS = ("can't allocate memory", "could not create a primitive")
"""What torch's allocator and oneDNN say when the host gives them no memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """torch has a class of its own for the GPU and none for the host."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in HOST_WORDS)
    )
