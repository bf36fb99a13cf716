"""Floating-point operations that training needs, and how many a second the machine's matrix product does.

The count is LoRA-aware: the base is frozen, so its weights are multiplied forward and once backward (for the
gradient of the input), while LoRA's are multiplied three times (their own gradient, too). The head counts at
trained positions only, causal attention by half its square. Recomputation is overhead, not work: not counted.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch

from workers.contract import TrainSpec
from workers.contract.estimate import BaseShape, adapter_parameters

WARMUP_SECONDS = 0.5
MEASURED_SECONDS = 1.0


def step_flops(shape: BaseShape, spec: TrainSpec, lengths: Sequence[int], trained_tokens: int) -> float:
    """Of one optimizer step over documents of `lengths` tokens."""
    tokens = sum(lengths)
    base = 4.0 * shape.layers * shape.layer_linear * tokens
    lora = 6.0 * adapter_parameters(shape, spec) * tokens
    head = 4.0 * shape.hidden * shape.vocabulary * trained_tokens
    # Two products forward and four backward, each of 2 * d operations per pair of a query and an earlier key.
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    attention = 12.0 * shape.layers * shape.heads * shape.head_dim * pairs
    return base + lora + head + attention


def matmul_rates(shape: BaseShape, tokens: int, device: torch.device) -> dict[str, float]:
    """bf16 operations per second of `x @ W.T` and `dy @ W` with this base's shapes and `tokens` rows.

    `mean` weighs every shape by the operations it has in a layer: what a layer of nothing but these products
    would reach. The layers that read the same input are measured as one product, forward and backward.
    """
    groups = {
        "qkv": ["q_proj", "k_proj", "v_proj"],
        "o": ["o_proj"],
        "gate_up": ["gate_proj", "up_proj"],
        "down": ["down_proj"],
    }
    rates: dict[str, float] = {}
    seconds, work = 0.0, 0.0
    for name, members in groups.items():
        inputs = shape.projections[members[0]][0]
        outputs = sum(shape.projections[member][1] for member in members)
        weight = torch.randn(outputs, inputs, dtype=torch.bfloat16, device=device)
        x = torch.randn(tokens, inputs, dtype=torch.bfloat16, device=device)
        dy = torch.randn(tokens, outputs, dtype=torch.bfloat16, device=device)
        taken = _seconds_of(x, weight, dy)
        operations = 4.0 * tokens * inputs * outputs
        rates[name] = operations / taken
        seconds, work = seconds + taken, work + operations
    return rates | {"mean": work / seconds}


def _seconds_of(x: Any, weight: Any, dy: Any) -> float:
    """Of one product forward and one backward; the fastest of many, so that other processes count little."""

    def once() -> float:
        begun = time.perf_counter()
        x @ weight.T
        dy @ weight
        if x.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    _until(WARMUP_SECONDS, once)
    return min(_until(MEASURED_SECONDS, once))


def _until(seconds: float, once: Any) -> list[float]:
    found: list[float] = []
    while sum(found) < seconds or len(found) < 3:
        found.append(once())
    return found
