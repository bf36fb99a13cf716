"""Training: the frozen specification of a run, and what the engine reports and returns."""

from typing import Literal

from pydantic import Field

from workers.contract.base import Message, Sha256

ThinkPolicy = Literal["traces", "answer_only", "no_think"]
"""What is trained of an assistant turn: reasoning and answer; the answer after a think block that is masked
from the loss; or the answer without any think block."""


class ThinkContract(Message):
    """How a base opens and closes its reasoning. It travels with every adapter trained on the base."""

    family: Literal["r1_qwen", "r1_llama", "r1_0528_qwen3", "qwen3", "qwq", "nemotron", "plain"]
    """The template family. `plain` has no think tokens of its own: the tags are ordinary text."""
    open: str = "<think>"
    close: str = "</think>"
    prompt_opens: bool = False
    """The generation prompt already ends in the opening tag, so a generation starts inside the reasoning."""
    history_keeps: bool = False
    """Earlier assistant turns keep their reasoning when they are rendered as history."""
    switch: Literal["none", "template_flag", "system_prompt"] = "none"
    """How reasoning is turned on and off: not at all, by `enable_thinking`, or by words in the system
    message.
    """
    switch_on: str = "detailed thinking on"
    """With `system_prompt`: the words that turn reasoning on; empty when it reasons without being told."""
    switch_off: str = "detailed thinking off"
    """With `system_prompt`: the words that turn it off."""


class TrainSpec(Message):
    """Everything that decides a training run. Frozen at submission.

    The same spec and data give the same adapter.
    """

    base: str = ""
    """Catalog id of the base."""
    base_revision: str = ""
    base_digest: Sha256 | None = None
    """Digest over the base's weight files; checked by the worker before it trains."""
    template_sha256: Sha256 | None = None
    """Digest of the chat template that training and serving both use."""
    data_sha256: Sha256 | None = None
    eval_sha256: Sha256 | None = None
    heldout_share: float = Field(default=0.0, ge=0.0, le=0.5)
    """Share of the data held out of training when no separate evaluation data is given."""
    heldout_group: str = Field(default="", max_length=200)
    """`SplitSpec.group` of that split."""
    think: ThinkContract = ThinkContract(family="plain", history_keeps=True)
    think_policy: ThinkPolicy = "traces"

    epochs: float = Field(default=1.0, gt=0, le=100)
    max_steps: int = Field(default=0, ge=0)
    """Upper limit on optimizer steps; 0 leaves it to `epochs`."""
    batch_size: int = Field(default=8, ge=1, le=1024)
    """Samples per optimizer step."""
    micro_batch_tokens: int = Field(default=2048, ge=16)
    """Tokens of one pack, the samples that go through the model together; a step is made of as many packs as
    it needs. A longer sample is a pack of its own."""
    max_length: int = Field(default=2048, ge=16)
    """Longest sample in tokens. A longer one is excluded and reported, never cut."""
    max_excluded_share: float = Field(default=0.1, ge=0, le=1)
    """A larger share of excluded samples fails the run."""
    learning_rate: float = Field(default=2e-4, gt=0, le=1e-1)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    optimizer: Literal["adamw", "paged_adamw_8bit"] = "adamw"
    rank: int = Field(default=16, ge=1, le=512)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: list[str] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], min_length=1
    )
    quantization: Literal["nf4", "none"] = "nf4"
    seed: int = 0
    devices: int = Field(default=1, ge=1, le=16)
    """GPUs of one host that share the packs of every step; on a CPU, processes. Each holds the whole base."""
    checkpoint_every: int = Field(default=0, ge=0)
    """Optimizer steps between checkpoints; 0 writes none."""
    golden_samples: int = Field(default=4, ge=0, le=32)
    """Samples whose token log-probabilities go into the manifest, for the proof that a replica applies the
    adapter."""
    think_rate_samples: int = Field(default=8, ge=0, le=64)
    """Replies that are generated after training to see whether the model still reasons; 0 generates none."""
    think_rate_tokens: int = Field(default=256, ge=16)
    """Longest of those replies, in tokens."""


class TrainProgress(Message):
    """One event of a run, given to `on_event`."""

    phase: Literal["loading", "tokenising", "training", "evaluating", "saving"]
    message: str = ""
    """One plain sentence for the person who watches."""
    step: int = 0
    """Optimizer steps done."""
    total_steps: int = 0
    loss: float | None = None
    """Mean loss per trained token of this optimizer step, in nats."""
    learning_rate: float | None = None
    grad_norm: float | None = None
    trained_tokens: int = 0
    """Tokens that entered the loss so far."""
    tokens_per_second: float | None = None
    """Real (unpadded) tokens through the model per second since the loop began, evaluation excluded."""
    eta_seconds: float | None = None


class ThinkRates(Message):
    """How the trained adapter reasons, in replies generated greedily to held-out prompts that ask for it.

    `valid` + `empty` + `missing` + `truncated` = `samples`.
    """

    samples: int
    valid: int = 0
    """Replies with reasoning, closed."""
    empty: int = 0
    """With a block that holds nothing."""
    missing: int = 0
    """With no block."""
    truncated: int = 0
    """Whose reasoning did not end within `tokens`."""
    tokens: int
    """Room that every reply had."""


class TrainResult(Message):
    """What a run ends with; the CLI prints it as its last line."""

    steps: int
    trained_tokens: int
    tokens_per_second: float
    train_loss: float
    """Mean over the last tenth of the steps (at least one), in nats per trained token."""
    heldout_loss: float | None
    """Mean over the held-out rows after training; None when nothing was held out."""
    base_heldout_loss: float | None = None
    """The same before training."""
    peak_memory_bytes: int
    """Peak resident memory of the process, or of the device when there is one."""
    adapter: str
    """Folder of the adapter."""
    samples: int = 0
    excluded: int = 0
    """Samples longer than `max_length`."""
    seconds: float = 0.0
    think_rates: ThinkRates | None = None
    """None when no reply was generated: nothing in the data thinks, or nothing fits `think_rate_tokens`."""
    device: str = ""
    """The device's name as its driver gives it, such as `NVIDIA H100 80GB HBM3`; `cpu` for a CPU."""
    memory_plan: str = ""
    """Name of the memory plan that the run ended with."""
    predicted_memory_bytes: int = 0
    """Of `peak_memory_bytes`, by the closed form alone, before the first step; 0: not predicted."""
    predicted_seconds: float = 0.0
    """Of `seconds`, by the closed form alone, before the first step; 0: not predicted."""
