"""Head and loss together: logits exist for a chunk of trained positions at a time, and are not kept."""

from collections.abc import Iterator
from typing import Any

import torch

from workers.training.packs import CPU_ROUND_TOKENS

HEAD_CHUNK = 512
"""Positions whose bf16 logits exist at a time: 50 MB for a vocabulary of 49,152."""
FP32_ROWS = {"cpu": 16, "cuda": HEAD_CHUNK}
"""How many of them are in fp32: on a CPU as many as stay in its cache."""


class HeadLoss(torch.autograd.Function):
    """Sum of the losses of `labels` [P] given hidden states [P, hidden], over `divisor`; fp32, in nats.

    The gradient of the hidden states is made on the way, while the logits are there.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, divisor: int
    ) -> torch.Tensor:
        loss = torch.zeros((), device=hidden.device)
        filled = _filled(hidden)
        gradient = torch.empty_like(filled)
        for chunk in _chunks(len(filled), HEAD_CHUNK):
            logits = filled[chunk] @ head.T
            trained = len(labels[chunk])
            for rows, logprobs in _logprobs(logits[:trained]):
                wanted = labels[chunk][rows].unsqueeze(1)
                loss -= logprobs.gather(1, wanted).sum()
                slope = logprobs.exp_().scatter_add_(1, wanted, wanted.new_full(wanted.shape, -1).float())
                logits[rows] = slope.div_(divisor)
            logits[trained:] = 0
            torch.mm(logits, head, out=gradient[chunk])
        ctx.save_for_backward(gradient[: len(labels)])
        return loss / divisor

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None, None


def label_logprobs(hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [P] of `labels` (fp32, nats) given hidden states [P, hidden]."""
    filled = _filled(hidden)
    found = [
        logprobs.gather(1, labels[chunk][rows].unsqueeze(1)).squeeze(1)
        for chunk in _chunks(len(filled), HEAD_CHUNK)
        for rows, logprobs in _logprobs((filled[chunk] @ head.T)[: len(labels[chunk])])
    ]
    return torch.cat(found)


def _filled(hidden: torch.Tensor) -> torch.Tensor:
    """On a CPU, which keeps a kernel for every shape, with empty rows up to a multiple of some."""
    missing = -len(hidden) % CPU_ROUND_TOKENS if hidden.device.type == "cpu" else 0
    return torch.nn.functional.pad(hidden, (0, 0, 0, missing)) if missing else hidden


def _logprobs(logits: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    for rows in _chunks(len(logits), FP32_ROWS[logits.device.type]):
        yield rows, torch.log_softmax(logits[rows].float(), dim=-1)


def _chunks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
