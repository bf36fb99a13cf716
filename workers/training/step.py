"""One optimizer step: launched, perhaps once more with less memory, and read when its figures are there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from workers.contract import TrainProgress, TrainSpec
from workers.training.forward import Decoder
from workers.training.loss import HeadLoss
from workers.training.packs import make_pack
from workers.training.plan import Packing
from workers.training.planner import is_out_of_memory, one_step_down
from workers.training.ranks import Ranks
from workers.training.render import Sample


@dataclass(frozen=True)
class Launched:
    """A step whose figures may still be on their way from the device."""

    tokens: int
    """Real tokens of its packs."""
    trained_tokens: int
    rate: float
    """Its learning rate."""
    figures: torch.Tensor
    """On the host: mean loss per trained token, and the gradient's norm before it was clipped."""
    arrived: Any
    """The CUDA event after their copy; None on a CPU."""

    def read(self) -> tuple[float, float]:
        """(loss, gradient norm). Waits for the device."""
        if self.arrived is not None:
            self.arrived.synchronize()
        loss, norm = self.figures.tolist()
        return loss, norm


def launch_step(
    decoder: Decoder,
    optimizer: torch.optim.Optimizer,
    samples: list[Sample],
    step: Packing,
    rate: float,
    on_event: Callable[[TrainProgress], None],
    ranks: Ranks,
) -> Launched:
    """Take a step; when it runs out of memory, the same one once more, with the next smaller memory plan.

    Where memory runs out before the ranks meet, the others just wait for the second attempt.
    """
    chosen = decoder.plan
    try:
        return _take_step(decoder, optimizer, samples, step, rate, ranks)
    except (RuntimeError, MemoryError) as error:
        smaller = one_step_down(decoder.plan)
        if smaller is None or decoder.stepped_down or ranks.has_met or not is_out_of_memory(error):
            raise
        decoder.step_down(smaller)
    # Out of the handler, which holds on to the tensors of the failed step.
    message = f"Out of memory with {chosen.name}; going on with {decoder.plan.name}."
    on_event(TrainProgress(phase="training", message=message))
    return _take_step(decoder, optimizer, samples, step, rate, ranks)


def _take_step(
    decoder: Decoder,
    optimizer: torch.optim.Optimizer,
    samples: list[Sample],
    step: Packing,
    rate: float,
    ranks: Ranks,
) -> Launched:
    """Every pack is divided by the tokens of the step, not by its own: however the step is cut into packs,
    and they are shared out among ranks, each token weighs the same. With several ranks the host waits for the
    device where they meet.
    """
    masters = decoder.masters
    taken = [samples[index] for pack in step for index in pack]
    trained_tokens = sum(sample.trained_tokens for sample in taken)
    loss = torch.zeros((), device=decoder.device)
    for indexes in ranks.share(step):
        pack = make_pack([samples[index] for index in indexes], decoder.device)
        part = HeadLoss.apply(decoder.hidden(pack), decoder.head, pack.labels, trained_tokens)
        part.backward()
        loss += part.detach()
    loss = ranks.sum_up(masters.gradient, loss)
    norm = torch.nn.utils.clip_grad_norm_(masters.vector, decoder.spec.max_grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    decoder.refresh()
    masters.gradient.zero_()
    figures, arrived = _sent(loss, norm)
    return Launched(sum(map(len, taken)), trained_tokens, rate, figures, arrived)


def _sent(*figures: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Scalars on their way to the host, and the event after them."""
    on_cuda = any(figure.is_cuda for figure in figures)
    host = torch.empty(len(figures), pin_memory=on_cuda)
    for place, figure in zip(host, figures, strict=True):
        place.copy_(figure, non_blocking=True)
    if not on_cuda:
        return host, None
    arrived = torch.cuda.Event()
    arrived.record()
    return host, arrived


def make_optimizer(decoder: Decoder, spec: TrainSpec) -> torch.optim.Optimizer:
    """Over the masters: torch's fused AdamW, or bitsandbytes' paged one in 8 bits."""
    masters = [decoder.masters.vector]
    if spec.optimizer == "paged_adamw_8bit":
        from bitsandbytes.optim import PagedAdamW8bit  # noqa: PLC0415 - seldom used, slow to import

        return PagedAdamW8bit(masters, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    return torch.optim.AdamW(masters, lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=True)
