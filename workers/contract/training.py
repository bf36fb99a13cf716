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
    """How reasoning is turned on and off: not at all, by `enable_thinking`, or by a system sentence."""


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
    think: ThinkContract = ThinkContract(family="plain", history_keeps=True)
    think_policy: ThinkPolicy = "traces"

    epochs: float = Field(default=1.0, gt=0, le=100)
    max_steps: int = Field(default=0, ge=0)
    """Upper limit on optimizer steps; 0 leaves it to `epochs`."""
    batch_size: int = Field(default=8, ge=1, le=1024)
    """Samples per optimizer step."""
    micro_batch_tokens: int = Field(default=2048, ge=16)
    """Tokens (padding included) that one forward pass may hold; an optimizer step is made of as many as it
    needs."""
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
    checkpoint_every: int = Field(default=0, ge=0)
    """Optimizer steps between checkpoints; 0 writes none."""
    golden_samples: int = Field(default=4, ge=0, le=32)
    """Samples whose token log-probabilities go into the manifest, for the proof that a replica applies the
    adapter."""


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
