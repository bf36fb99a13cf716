"""Memory and time of a run before it runs: closed form, then corrected by what earlier runs took."""

import math
import statistics
from collections.abc import Sequence

from pydantic import Field

from workers.contract.base import Message
from workers.contract.estimate import (
    BF16,
    PLANS,
    BaseShape,
    Device,
    Estimate,
    MemoryPlan,
    adapter_parameters,
    fitting_plan,
    peak_bytes,
)
from workers.contract.machines import Machine, class_name, flops_per_second
from workers.contract.training import TrainResult, TrainSpec
from workers.contract.workload import Workload

PAST_RUNS = 5
"""The newest runs of a class of machine and a base that a correction is made of."""
MEMORY_SPREAD = 0.1
"""Relative half-width of the memory range: what the closed form is held to by measurement."""
TIME_SPREAD = 0.25
"""The same for the time where earlier runs or the machine's speed are known; else half to twice is said."""
ROUGH_SPREAD = 0.35
"""What is added to either side where the tokens were guessed from characters and not counted."""

START_SECONDS: dict[Device, float] = {"cpu": 11.0, "cuda": 25.0}
"""Imports, and a GPU's context; then writing the adapter."""
LOAD_BYTES_PER_SECOND: dict[Device, float] = {"cpu": 100e6, "cuda": 500e6}
"""bf16 bytes of weights digested, read, quantised and unpacked a second."""
PACK_SECONDS: dict[Device, float] = {"cpu": 0.004, "cuda": 0.0015}
"""What a pack costs a layer beyond arithmetic: launches, and its weights through the caches."""
UNPACK_PER_SECOND: dict[Device, float] = {"cpu": 0.4e9, "cuda": 400e9}
"""NF4 weights dequantised a second; with scratch weights every pack does all of them twice."""


class PastRun(Message):
    """What an earlier run was expected to take by the closed form alone, and what it took."""

    predicted_seconds: float = Field(gt=0)
    seconds: float = Field(gt=0)
    predicted_memory_bytes: int = Field(gt=0)
    memory_bytes: int = Field(gt=0)


class Correction(Message):
    """What the closed form is multiplied by."""

    runs: int = 0
    """How many past runs it was made of; none change nothing."""
    seconds: float = 1.0
    memory: float = 1.0


def past_run_of(result: TrainResult, *, on: Machine) -> PastRun | None:
    """What a finished run tells about this machine; None when it ran on another class or was resumed."""
    comparable = class_name(result.device) == class_name(on.name) if result.device else False
    if not comparable or not result.predicted_seconds or not result.predicted_memory_bytes:
        return None
    return PastRun(
        predicted_seconds=result.predicted_seconds,
        seconds=result.seconds,
        predicted_memory_bytes=result.predicted_memory_bytes,
        memory_bytes=result.peak_memory_bytes,
    )


def correction_of(past: Sequence[PastRun]) -> Correction:
    """The median ratio of measured to predicted; `past` is newest first, and `PAST_RUNS` of it count."""
    newest = past[:PAST_RUNS]
    if not newest:
        return Correction()
    return Correction(
        runs=len(newest),
        seconds=statistics.median(run.seconds / run.predicted_seconds for run in newest),
        memory=statistics.median(run.memory_bytes / run.predicted_memory_bytes for run in newest),
    )


def forecast(
    shape: BaseShape,
    spec: TrainSpec,
    load: Workload,
    machine: Machine,
    *,
    correction: Correction | None = None,
    rough: bool = False,
) -> Estimate:
    """What a run of this load takes on this machine. `rough`: the tokens were guessed, not counted.

    On a machine of unknown memory the run gets the fastest plan, and the range reaches down to the smallest.
    """
    known = correction or Correction()
    chosen = PLANS[0]
    if machine.memory_bytes:
        found = fitting_plan(
            shape,
            spec,
            load.largest_pack,
            machine.device,
            load.longest,
            machine.memory_bytes / known.memory,
        )
        chosen = found or PLANS[-1]
    likely = memory_of(shape, spec, chosen, load, machine, known)
    least = likely if machine.memory_bytes else memory_of(shape, spec, PLANS[-1], load, machine, known)
    seconds = run_seconds(shape, spec, chosen, load, machine) * known.seconds
    low, high = (1 - TIME_SPREAD, 1 + TIME_SPREAD) if known.runs or machine.flops else (0.5, 2.0)
    guess = ROUGH_SPREAD if rough else 0.0
    return Estimate(
        samples=load.samples,
        excluded=load.excluded,
        tokens=load.tokens,
        trained_tokens=load.trained_tokens,
        steps=load.steps,
        packs=load.packs,
        largest_pack=load.largest_pack,
        memory_bytes=likely,
        memory_low_bytes=round(least * (1 - MEMORY_SPREAD)),
        memory_high_bytes=round(likely * (1 + MEMORY_SPREAD)),
        seconds=round(seconds, 1),
        seconds_low=round(seconds * low * (1 - guess), 1),
        seconds_high=round(seconds * high * (1 + guess), 1),
        plan=chosen,
        fits=not machine.memory_bytes or likely <= machine.memory_bytes,
        rough=rough,
        past_runs=known.runs,
    )


def memory_of(
    shape: BaseShape,
    spec: TrainSpec,
    plan: MemoryPlan,
    load: Workload,
    machine: Machine,
    correction: Correction,
) -> int:
    """Corrected peak bytes of this load under one plan."""
    closed = peak_bytes(shape, spec, plan, load.largest_pack, machine.device, load.longest)
    return round(closed * correction.memory)


def run_seconds(
    shape: BaseShape, spec: TrainSpec, plan: MemoryPlan, load: Workload, machine: Machine
) -> float:
    """Seconds of a whole run by the closed form: start, load, steps, held-out rows before and after."""
    device = machine.device
    operations = train_flops(shape, spec, plan, load) + 2 * forward_flops(
        shape, spec, load.heldout_tokens, load.heldout_trained_tokens, _heldout_squares(load)
    )
    heldout_packs = math.ceil(load.heldout_tokens / spec.micro_batch_tokens)
    # Evaluation makes half the passes of a training pack, and happens twice.
    packs = load.packs + heldout_packs
    unpacked = 0.0
    if plan.weights == "scratch" and spec.quantization == "nf4":
        unpacked = packs * 2 * shape.layers * shape.layer_linear / UNPACK_PER_SECOND[device]
    return (
        START_SECONDS[device]
        + shape.parameters * BF16 / LOAD_BYTES_PER_SECOND[device]
        + operations / flops_per_second(machine)
        + packs * shape.layers * PACK_SECONDS[device]
        + unpacked
    )


def train_flops(shape: BaseShape, spec: TrainSpec, plan: MemoryPlan, load: Workload) -> float:
    """Operations of all training steps: the LoRA-aware count.

    The frozen weights cost two operations a parameter and token forward and two backward (they have no
    gradient of their own); LoRA's cost two and four; a recomputed layer goes forward twice. Attention looks
    back on half of the squared lengths, and its backward pass costs two and a half times its forward pass.
    The head sees trained positions alone, once in each direction.
    """
    frozen, lora = shape.layers * shape.layer_linear, adapter_parameters(shape, spec)
    again = plan.checkpointing != "none"
    linear = load.tokens * (frozen * (6 if again else 4) + lora * (8 if again else 6))
    # The attention's output is the one thing that selective checkpointing keeps.
    attention = _attention_flops(shape, load.squared_tokens) * (
        4.5 if plan.checkpointing in ("full", "offload") else 3.5
    )
    return linear + attention + 4 * shape.hidden * shape.vocabulary * load.trained_tokens


def forward_flops(shape: BaseShape, spec: TrainSpec, tokens: int, trained: int, squares: float) -> float:
    """Operations of one pass without gradients."""
    weights = shape.layers * shape.layer_linear + adapter_parameters(shape, spec)
    return (
        2 * tokens * weights
        + _attention_flops(shape, squares)
        + 2 * shape.hidden * shape.vocabulary * trained
    )


def _attention_flops(shape: BaseShape, squares: float) -> float:
    """Forward: two products of query width over the causal half of every sample's square, in each layer."""
    return 2 * shape.layers * shape.heads * shape.head_dim * squares


def _heldout_squares(load: Workload) -> float:
    """As if held-out samples were as long as those trained on."""
    return load.squared_tokens * load.heldout_tokens / load.tokens if load.tokens else 0.0
