"""One run, from top to bottom: open the base, render the data, plan, load, step, measure, export."""

import contextlib
import errno
import json
import math
import shutil
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from workers.contract import TrainProgress, TrainResult, TrainSpec
from workers.contract.weights import digest_base, template_sha256
from workers.training.base import check_spec, open_base, shape_of
from workers.training.checkpoint import Identity, Progress, load_newest, save_checkpoint
from workers.training.errors import Cancelled, TrainingError
from workers.training.estimate import predicted_seconds
from workers.training.export import write_adapter
from workers.training.forward import Decoder
from workers.training.golden import golden_samples
from workers.training.measure import mean_loss
from workers.training.memory import peak_memory_bytes
from workers.training.model import attach_lora, load_base, pick_device, prepare_torch
from workers.training.plan import STEPS_AHEAD, Packing, Plan, learning_rate_at, make_plan
from workers.training.planner import choose_plan, is_out_of_memory
from workers.training.prepare import check_data, read_samples, write_excluded
from workers.training.ranks import ALONE, Ranks
from workers.training.rates import think_rates
from workers.training.render import Renderer, Sample
from workers.training.step import Launched, launch_step, make_optimizer
from workers.training.tokenizer import load_tokenizer

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
    ranks: Ranks = ALONE,
) -> TrainResult | None:
    """Train a LoRA on the base in `base` with the chats in `data`; leave it in `out`/adapter.

    Beside it go losses.jsonl (a step a line), checkpoints/ and, when samples were left out, excluded.jsonl.
    With `resume` the newest checkpoint in `out` is gone on from. `should_stop` is asked after every step.
    Of several `ranks` only the first writes and returns anything; the others are done after the last step.
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
        tokenizer = load_tokenizer(base)
        samples = read_samples(data, eval_data, spec, Renderer(tokenizer, spec.think, spec.think_policy))
        if ranks.is_first:
            write_excluded(out / "excluded.jsonl", samples)
        plan = make_plan([len(sample) for sample in samples.train], spec)
        on_event(TrainProgress(phase="tokenising", message=_counted(samples.train, samples.excluded)))

        on_event(TrainProgress(phase="loading", message="Loading the base."))
        device = pick_device(ranks.rank)
        memory_plan, predicted = choose_plan(
            shape_of(opened), spec, *_largest(samples.train, plan.steps), device
        )
        expected = predicted_seconds(spec, opened, samples, plan, memory_plan)
        model = attach_lora(load_base(base), spec)
        decoder = Decoder(model, spec, memory_plan, device)
        optimizer = make_optimizer(decoder, spec)

        identity = Identity(
            spec=spec, data_sha256=data_sha256, base_digest=base_digest, plan_digest=plan.digest
        )
        checkpoints = out / "checkpoints"
        ranks.join()
        progress = load_newest(checkpoints, decoder, optimizer, identity) if resume else None
        ranks.agree_on(progress.step if progress else 0)
        if not ranks.is_first:
            _follow(decoder, optimizer, samples.train, plan, progress or Progress(), ranks)
            return None
        if progress is None and resume:
            on_event(
                TrainProgress(
                    phase="loading", message="There is no checkpoint, so this starts from the beginning."
                )
            )
        progress = progress or _start_anew(out)
        if progress.step == 0 and samples.heldout:
            on_event(TrainProgress(phase="evaluating", message="Measuring the base on the held-out rows."))
            progress.base_heldout_loss = mean_loss(decoder, samples.heldout)

        total = len(plan.steps)
        clock = _Clock()
        launched: deque[Launched] = deque()
        ahead, taken, wanted = STEPS_AHEAD[device.type], progress.step, False

        def is_due(step: int) -> bool:
            return bool(spec.checkpoint_every) and step % spec.checkpoint_every == 0

        with _loss_file(out / "losses.jsonl", progress.losses) as write_loss:
            while progress.step < total:
                # A checkpoint holds the state after the last launched step: all are read before it.
                checkpoint_next = bool(launched) and (wanted or is_due(taken))
                if taken < total and len(launched) <= ahead and not checkpoint_next:
                    rate = learning_rate_at(taken, total, spec)
                    ranks.seed_step(spec.seed, taken)
                    launched.append(
                        launch_step(
                            decoder, optimizer, samples.train, plan.steps[taken], rate, on_event, ranks
                        )
                    )
                    taken += 1
                    continue
                step = launched.popleft()
                loss, grad_norm = step.read()
                clock.count(step.tokens)
                progress.step += 1
                progress.losses.append(loss)
                check_loss(progress, grad_norm)
                progress.trained_tokens += step.trained_tokens
                write_loss(progress.step, loss)
                on_event(
                    TrainProgress(
                        phase="training",
                        step=progress.step,
                        total_steps=total,
                        loss=loss,
                        learning_rate=step.rate,
                        grad_norm=grad_norm,
                        trained_tokens=progress.trained_tokens,
                        tokens_per_second=clock.tokens_per_second,
                        eta_seconds=clock.seconds_per_step * (total - progress.step),
                    )
                )
                wish = should_stop()
                if wish == "cancel":
                    raise Cancelled
                wanted = wanted or wish == "checkpoint"
                if not launched and (wanted or is_due(progress.step)):
                    save_checkpoint(checkpoints, decoder, optimizer, progress, identity)
                    wanted = False
                clock.restart()

        heldout_loss = None
        if samples.heldout:
            on_event(
                TrainProgress(
                    phase="evaluating", step=total, total_steps=total, message="Measuring the adapter."
                )
            )
            heldout_loss = mean_loss(decoder, samples.heldout)

        thinking = think_rates(model, tokenizer, samples.heldout, spec, device)

        on_event(TrainProgress(phase="saving", step=total, total_steps=total, message="Writing the adapter."))
        golden = golden_samples(decoder, samples.heldout or samples.train, spec.golden_samples)
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
            think_rates=thinking,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            memory_plan=decoder.plan.name,
            predicted_memory_bytes=predicted,
            # A resumed run took less than a whole one: there is nothing to compare then. The closed form
            # knows one device.
            predicted_seconds=0.0 if clock.steps < total or ranks.world > 1 else round(expected, 1),
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


def _follow(
    decoder: Decoder,
    optimizer: torch.optim.Optimizer,
    samples: list[Sample],
    plan: Plan,
    progress: Progress,
    ranks: Ranks,
) -> None:
    """The steps of a rank that is not the first: its share of the packs, nothing written."""
    total = len(plan.steps)
    for index in range(progress.step, total):
        rate = learning_rate_at(index, total, decoder.spec)
        ranks.seed_step(decoder.spec.seed, index)
        launch_step(decoder, optimizer, samples, plan.steps[index], rate, lambda _: None, ranks)


def _largest(samples: list[Sample], steps: list[Packing]) -> tuple[int, int]:
    """Tokens of the largest pack and of the longest sample."""
    packs = (pack for step in steps for pack in step)
    return max(sum(len(samples[index]) for index in pack) for pack in packs), max(map(len, samples))


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
    _since: float = field(default_factory=time.monotonic)

    def restart(self) -> None:
        """What follows is a step's time."""
        self._since = time.monotonic()

    def count(self, tokens: int) -> None:
        """A step of `tokens` tokens is over."""
        self.seconds += time.monotonic() - self._since
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
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
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
