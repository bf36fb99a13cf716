"""What a run will need, in closed form: peak memory term by term, for the planner and for the run form.

Pure arithmetic on shapes and settings: no torch, no file. Sizes are bytes, lengths are tokens. The terms
follow what `workers.training` keeps; the constants that arithmetic cannot give are measured and say where.
"""

from typing import Literal

from pydantic import Field

from workers.contract.base import Message
from workers.contract.training import TrainSpec

Device = Literal["cpu", "cuda"]

BF16 = 2
FP32 = 4
NF4_BLOCK = 64
NF4_BYTES = 0.5 + FP32 / NF4_BLOCK
"""Bytes a parameter takes in NF4: half a byte, and one fp32 absmax per block of 64."""
ADAM_STATES = {"adamw": 2 * FP32, "paged_adamw_8bit": 2}
"""Bytes of optimizer state per trained parameter."""
HEAD_CHUNK = 512
"""Positions whose logits the fused loss makes at a time."""
PROCESS_FLOOR: dict[Device, int] = {"cpu": 850 * 1024**2, "cuda": 100 * 1024**2}
"""What is taken beside the weights: Python with torch, transformers, peft and bitsandbytes on a CPU, and the
kernels that its library of matrix products keeps (about 100 MiB);
the workspaces of cuBLAS on a CUDA device (its context is not counted among what is free)."""

ALLOCATOR_SLACK: dict[Device, float] = {"cpu": 1.6, "cuda": 1.0}
"""Activations take this times their size. On a CPU the C library keeps pieces of what was freed: measured
with SmolLM2-135M and packs of up to 435, 1,021 and 2,048 tokens between 1.4, where the packs are alike, and
1.9, where they and their documents are of many lengths. On a GPU assumed."""


class BaseShape(Message):
    """The numbers of a base that decide what a run on it costs."""

    layers: int = Field(ge=1)
    hidden: int = Field(ge=1)
    intermediate: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    vocabulary: int = Field(ge=1)
    tied: bool
    """The head shares the embedding's weights."""
    parameters: int = Field(ge=1)
    """Elements of all stored tensors; tied weights count once."""

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of a layer's linear weights by name."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, query),
            "k_proj": (self.hidden, key),
            "v_proj": (self.hidden, key),
            "o_proj": (query, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def layer_linear(self) -> int:
        """Linear weights of one layer, in elements."""
        return sum(inputs * outputs for inputs, outputs in self.projections.values())


class MemoryPlan(Message):
    """How a run trades time for memory."""

    weights: Literal["resident", "scratch"]
    """`resident`: every linear weight dequantised once. `scratch`: NF4 stays, one bf16 buffer per shape is
    filled before each use."""
    checkpointing: Literal["none", "selective", "full", "offload"]
    """What a layer keeps for the backward pass: everything; its input and the attention's output; its input;
    its input, on the host."""

    @property
    def name(self) -> str:
        return f"{self.weights} weights, {self.checkpointing} checkpointing"


PLANS: tuple[MemoryPlan, ...] = (
    MemoryPlan(weights="resident", checkpointing="none"),
    MemoryPlan(weights="scratch", checkpointing="none"),
    MemoryPlan(weights="resident", checkpointing="selective"),
    MemoryPlan(weights="scratch", checkpointing="selective"),
    MemoryPlan(weights="resident", checkpointing="full"),
    MemoryPlan(weights="scratch", checkpointing="full"),
    MemoryPlan(weights="scratch", checkpointing="offload"),
)
"""From the fastest to the smallest."""


class Estimate(Message):
    """What a run is expected to need, before it runs."""

    samples: int = 0
    """Different training samples."""
    excluded: int = 0
    """Samples left out because they are too long."""
    tokens: int
    """Through the model, all epochs."""
    trained_tokens: int
    """That enter the loss, all epochs."""
    steps: int
    packs: int = 0
    """Passes through the model."""
    largest_pack: int = 0
    """Tokens of the largest pack, which decides the memory."""
    memory_bytes: int
    """Likely peak of the process on a CPU, of the device on a GPU."""
    memory_low_bytes: int
    memory_high_bytes: int
    seconds: float
    """Likely."""
    seconds_low: float
    seconds_high: float
    plan: MemoryPlan
    fits: bool
    advice: str = ""
    """The smallest change that would fit, in one sentence; empty when it fits."""
    rough: bool = False
    """The tokens were guessed from characters, not counted."""
    past_runs: int = 0
    """Earlier runs that it was corrected by."""


def peak_bytes(
    shape: BaseShape,
    spec: TrainSpec,
    plan: MemoryPlan,
    pack_tokens: int,
    device: Device,
    longest_tokens: int,
) -> int:
    """Peak memory of a run whose largest pack has `pack_tokens` tokens and longest sample `longest_tokens`.

    Resident memory of the process on a CPU; memory of the device on a GPU.
    """
    tokens = max(pack_tokens, longest_tokens)
    return int(
        PROCESS_FLOOR[device]
        + weight_bytes(shape, spec, plan)
        + adapter_bytes(shape, spec)
        + activation_bytes(shape, spec, plan, tokens, device)
        + workspace_bytes(shape, spec, tokens)
        + head_bytes(shape, tokens, device)
    )


def fitting_plan(
    shape: BaseShape,
    spec: TrainSpec,
    pack_tokens: int,
    device: Device,
    longest_tokens: int,
    available_bytes: float,
) -> MemoryPlan | None:
    """The fastest plan whose peak is at most `available_bytes`; None when not even the smallest fits."""
    return next(
        (
            plan
            for plan in PLANS
            if peak_bytes(shape, spec, plan, pack_tokens, device, longest_tokens) <= available_bytes
        ),
        None,
    )


def weight_bytes(shape: BaseShape, spec: TrainSpec, plan: MemoryPlan) -> float:
    """The frozen base: linear weights as the plan keeps them; embeddings, head and norms in bf16."""
    linear = shape.layers * shape.layer_linear
    others = (shape.parameters - linear) * BF16
    if spec.quantization == "none" or plan.weights == "resident":
        return others + linear * BF16
    # One layer's shapes at a time are unpacked into scratch.
    return others + linear * NF4_BYTES + shape.layer_linear * BF16


def adapter_parameters(shape: BaseShape, spec: TrainSpec) -> int:
    """Elements of all LoRA matrices: rank x (inputs + outputs) for every target of every layer."""
    sizes = [sum(shape.projections[name]) for name in spec.target_modules if name in shape.projections]
    return shape.layers * spec.rank * sum(sizes)


def adapter_bytes(shape: BaseShape, spec: TrainSpec) -> float:
    """LoRA masters and gradients in fp32, the optimizer's states, and the bf16 copies that are multiplied."""
    return adapter_parameters(shape, spec) * (2 * FP32 + ADAM_STATES[spec.optimizer] + BF16)


def layer_activation_bytes(shape: BaseShape, spec: TrainSpec, device: Device) -> int:
    """Bytes that one layer keeps per token when nothing is recomputed.

    bf16: both normalised inputs (2 hidden); gate and up (2 intermediate); LoRA's inner products. Each of the
    two norms keeps its input, on a CPU in fp32. Counted with saved-tensor hooks on SmolLM2-135M: 17,952
    against 17,888.
    """
    inner = sum(name in shape.projections for name in spec.target_modules) * spec.rank
    elements = 2 * shape.hidden + 2 * shape.intermediate + inner
    stream = 2 * shape.hidden * _finer(device)
    return elements * BF16 + stream + _attention_bytes(shape, device)


def _attention_bytes(shape: BaseShape, device: Device) -> int:
    """Of what attention keeps per token: values and its output, and queries and keys after rotation."""
    both = (shape.heads + shape.kv_heads) * shape.head_dim
    return both * BF16 + both * _finer(device)


def _finer(device: Device) -> int:
    """Bytes of an element of what bf16 would round too much where fp32 costs little."""
    return FP32 if device == "cpu" else BF16


def activation_bytes(
    shape: BaseShape, spec: TrainSpec, plan: MemoryPlan, tokens: int, device: Device
) -> float:
    """What waits for the backward pass when it begins: every layer's share, and one layer made anew."""
    whole = layer_activation_bytes(shape, spec, device)
    between = shape.hidden * _finer(device)
    kept = {
        "none": whole,
        "selective": between + _attention_bytes(shape, device),
        "full": between,
        # The host is the device when there is no other: nothing is saved then.
        "offload": between if device == "cpu" else 0,
    }[plan.checkpointing]
    again = 0 if plan.checkpointing == "none" else whole
    return (shape.layers * kept + again) * tokens * ALLOCATOR_SLACK[device]


def workspace_bytes(shape: BaseShape, spec: TrainSpec, tokens: int) -> float:
    """Gradients inside one layer: of gate, up and their product, of the residual stream and its norm."""
    return float((4 * shape.intermediate + 4 * shape.hidden) * tokens * BF16)


def head_bytes(shape: BaseShape, tokens: int, device: Device) -> float:
    """Logits of one chunk (on a GPU in fp32, too, with their softmax), hidden states and their gradient."""
    chunk = min(HEAD_CHUNK, tokens)
    logit = BF16 if device == "cpu" else BF16 + 2 * FP32
    return float(chunk * shape.vocabulary * logit + 2 * tokens * shape.hidden * BF16)
