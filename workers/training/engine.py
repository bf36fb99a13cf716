"""One run, from top to bottom: open the base, render the data, plan, load, step, measure, export."""

import contextlib
import errno
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from workers.contract import TrainProgress, TrainResult, TrainSpec
from workers.contract.weights import digest_base, template_sha256
from workers.training.base import check_spec, open_base
from workers.training.checkpoint import Identity, Progress, load_newest, save_checkpoint
from workers.training.errors import Cancelled, TrainingError
from workers.training.export import write_adapter
from workers.training.golden import golden_samples
from workers.training.loss import mean_loss, target_logprobs
from workers.training.memory import peak_memory_bytes
from workers.training.model import (
    attach_lora,
    load_base,
    load_tokenizer,
    pick_device,
    prepare_torch,
    trainable,
)
from workers.training.plan import Step, learning_rate_at, make_plan, microbatches
from workers.training.prepare import check_data, read_samples, write_excluded
from workers.training.render import Renderer, Sample

OnEvent = Callable[[TrainProgress], None]
ShouldStop = Callable[[], Literal["continue", "checkpoint", "cancel"]]

DIVERGED_FACTOR = 3.0
DIVERGED_NATS = 3.0
DIVERGED_STEPS = 5
"""Steps in a row at a loss of more than `DIVERGED_FACTOR` times and `DIVERGED_NATS` over the first: hopeless.
"""


def train(  # noqa: PLR0915 - one run, read straight down
    spec: TrainSpec,
    *,
    base: Path,
    data: Path,
    eval_data: Path | None,
    out: Path,
    on_event: OnEvent,
    resume: bool = False,
    run_id: str = "",
    should_stop: ShouldStop = lambda: "continue",
) -> TrainResult:
    """Train a LoRA on the base in `base` with the chats in `data`; leave it in `out`/adapter.

    Beside it go losses.jsonl (a step a line), checkpoints/ and, when samples were left out, excluded.jsonl.
    With `resume` the newest checkpoint in `out` is gone on from. `should_stop` is asked after every step.
    Raises TrainingError for whatever a person must read and Cancelled when `should_stop` says so; there is no
    `out`/adapter then, except the one of an earlier run when this one was refused before it began.
    """
    begun = time.monotonic()
    with _plain_errors(spec):
        on_event(TrainProgress(phase="loading", message="Checking the base and the data."))
        opened = open_base(base)
        check_spec(opened, spec)
        data_sha256 = check_data(data, eval_data, spec)
        base_digest = digest_base(base)
        out.mkdir(parents=True, exist_ok=True)
        prepare_torch(spec.seed)

        on_event(TrainProgress(phase="tokenising", message="Turning the rows into tokens."))
        samples = read_samples(
            data, eval_data, spec, Renderer(load_tokenizer(base), spec.think, spec.think_policy)
        )
        write_excluded(out / "excluded.jsonl", samples)
        plan = make_plan([len(sample) for sample in samples.train], spec)
        on_event(TrainProgress(phase="tokenising", message=_counted(samples.train, samples.excluded)))

        on_event(TrainProgress(phase="loading", message="Loading the base."))
        device = pick_device()
        model = attach_lora(load_base(base, spec, device), spec)
        optimizer = _optimizer(model, spec, device)
        heldout_batches = microbatches(
            range(len(samples.heldout)), [len(sample) for sample in samples.heldout], spec.micro_batch_tokens
        )

        identity = Identity(
            spec=spec, data_sha256=data_sha256, base_digest=base_digest, plan_digest=plan.digest
        )
        checkpoints = out / "checkpoints"
        progress = load_newest(checkpoints, model, optimizer, identity) if resume else _start_anew(out)
        if progress is None:
            on_event(
                TrainProgress(
                    phase="loading", message="There is no checkpoint, so this starts from the beginning."
                )
            )
            progress = _start_anew(out)
        if progress.step == 0 and samples.heldout:
            on_event(TrainProgress(phase="evaluating", message="Measuring the base on the held-out rows."))
            progress.base_heldout_loss = mean_loss(model, samples.heldout, heldout_batches, device)

        total = len(plan.steps)
        clock = _Clock()
        with _loss_file(out / "losses.jsonl", progress.losses) as write_loss:
            while progress.step < total:
                step = plan.steps[progress.step]
                rate = learning_rate_at(progress.step, total, spec)
                with clock.running(sum(len(samples.train[index]) for batch in step for index in batch)):
                    loss, grad_norm = _take_step(model, optimizer, samples.train, step, rate, spec, device)
                progress.step += 1
                progress.losses.append(loss)
                check_loss(progress, grad_norm)
                progress.trained_tokens += sum(
                    samples.train[index].trained_tokens for batch in step for index in batch
                )
                write_loss(progress.step, loss)
                on_event(
                    TrainProgress(
                        phase="training",
                        step=progress.step,
                        total_steps=total,
                        loss=loss,
                        learning_rate=rate,
                        grad_norm=grad_norm,
                        trained_tokens=progress.trained_tokens,
                        tokens_per_second=clock.tokens_per_second,
                        eta_seconds=clock.seconds_per_step * (total - progress.step),
                    )
                )
                wish = should_stop()
                due = spec.checkpoint_every and progress.step % spec.checkpoint_every == 0
                if wish == "checkpoint" or due:
                    save_checkpoint(checkpoints, model, optimizer, progress, identity)
                if wish == "cancel":
                    raise Cancelled

        heldout_loss = None
        if samples.heldout:
            on_event(
                TrainProgress(
                    phase="evaluating", step=total, total_steps=total, message="Measuring the adapter."
                )
            )
            heldout_loss = mean_loss(model, samples.heldout, heldout_batches, device)

        on_event(TrainProgress(phase="saving", step=total, total_steps=total, message="Writing the adapter."))
        golden = golden_samples(model, samples.heldout or samples.train, spec.golden_samples, device)
        result = TrainResult(
            steps=progress.step,
            trained_tokens=progress.trained_tokens,
            tokens_per_second=clock.tokens_per_second,
            train_loss=statistics.fmean(progress.losses[-max(1, total // 10) :]),
            heldout_loss=heldout_loss,
            base_heldout_loss=progress.base_heldout_loss,
            peak_memory_bytes=peak_memory_bytes(device),
            adapter=str(out / "adapter"),
            samples=len(samples.train),
            excluded=len(samples.excluded),
            seconds=round(time.monotonic() - begun, 3),
        )
        write_adapter(
            out / "adapter",
            model,
            base=opened,
            base_digest=base_digest,
            template_sha256=template_sha256(base),
            spec=spec,
            data_sha256=data_sha256,
            result=result,
            golden=golden,
            run_id=run_id,
        )
        return result


def _take_step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    samples: list[Sample],
    step: Step,
    rate: float,
    spec: TrainSpec,
    device: torch.device,
) -> tuple[float, float]:
    """One optimizer step. Returns the mean loss per trained token of the whole step and the gradient's norm.

    Every microbatch is divided by the tokens of the step, not by its own: however the step is cut into
    microbatches, each token weighs the same.
    """
    tokens = sum(samples[index].trained_tokens for batch in step for index in batch)
    loss = torch.zeros((), device=device)
    for batch in step:
        part = -target_logprobs(model, [samples[index] for index in batch], device).sum() / tokens
        part.backward()
        loss += part.detach()
    norm = torch.nn.utils.clip_grad_norm_(list(trainable(model).values()), spec.max_grad_norm)
    if torch.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss), float(norm)


def _optimizer(model: Any, spec: TrainSpec, device: torch.device) -> torch.optim.Optimizer:
    parameters = list(trainable(model).values())
    if spec.optimizer == "paged_adamw_8bit":
        from bitsandbytes.optim import PagedAdamW8bit  # noqa: PLC0415 - seldom used, slow to import

        return PagedAdamW8bit(parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    return torch.optim.AdamW(parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=True)


def check_loss(progress: Progress, grad_norm: float) -> None:
    """Stop a run that has nothing left to learn from; the last checkpoint before it is still good."""
    first, last = progress.losses[0], progress.losses[-1]
    advice = "Lower learning_rate or raise warmup_ratio. Checkpoints written before this are still good."
    if not math.isfinite(last) or not math.isfinite(grad_norm):
        raise TrainingError(
            "not_a_number", f"The loss stopped being a number at step {progress.step}. {advice}"
        )
    recent = progress.losses[-DIVERGED_STEPS:]
    if progress.step > DIVERGED_STEPS and min(recent) > max(first * DIVERGED_FACTOR, first + DIVERGED_NATS):
        raise TrainingError(
            "diverged",
            f"The loss rose from {first:.2f} to {last:.2f} by step {progress.step} and stays there. {advice}",
        )


def _start_anew(out: Path) -> Progress:
    """Leave nothing of an earlier run that could be taken for this one's."""
    for name in ("checkpoints", "adapter"):
        shutil.rmtree(out / name, ignore_errors=True)
    return Progress()


@contextlib.contextmanager
def _loss_file(file: Path, losses: list[float]) -> Iterator[Callable[[int, float], None]]:
    """Yield what adds a line to losses.jsonl, which starts with the steps that a checkpoint already holds."""
    with file.open("w", encoding="utf-8", buffering=1) as stream:

        def write(step: int, loss: float) -> None:
            stream.write(json.dumps({"step": step, "loss": loss}) + "\n")

        for index, loss in enumerate(losses):
            write(index + 1, loss)
        yield write


@dataclass
class _Clock:
    """Times the steps alone: no loading, evaluation or checkpoint."""

    seconds: float = 0.0
    tokens: int = 0
    steps: int = 0

    @contextlib.contextmanager
    def running(self, tokens: int) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds += time.monotonic() - start
        self.tokens += tokens
        self.steps += 1

    @property
    def tokens_per_second(self) -> float:
        return round(self.tokens / self.seconds, 2) if self.seconds else 0.0

    @property
    def seconds_per_step(self) -> float:
        return self.seconds / self.steps if self.steps else 0.0


@contextlib.contextmanager
def _plain_errors(spec: TrainSpec) -> Iterator[None]:
    """Say in words what the machine ran out of."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise TrainingError(
            "out_of_memory",
            f"The run did not fit into memory with micro_batch_tokens={spec.micro_batch_tokens} and "
            f"max_length={spec.max_length}. Halve micro_batch_tokens, and max_length where it is larger.",
        ) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise TrainingError(
            "disk_full",
            "The disk is full. Free some space and resume; nothing half-written was kept.",
            fault="platform",
        ) from None


def _counted(samples: list[Sample], excluded: list[Sample]) -> str:
    tokens = sum(len(sample) for sample in samples)
    text = f"{len(samples):,} samples with {tokens:,} tokens."
    if excluded:
        text += f" {len(excluded):,} longer than the limit are left out; excluded.jsonl lists them."
    return text
