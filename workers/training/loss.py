"""The forward pass up to the loss: vocabulary-sized logits only where something is learnt."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from workers.training.render import Sample

HEAD_CHUNK = 512
"""Positions whose logits are made at a time: 100 MB in fp32 for a vocabulary of 49,152."""


def target_logprobs(model: Any, samples: Sequence[Sample], device: torch.device) -> torch.Tensor:
    """Log-probabilities of the trained target tokens (fp32, nats), shape [tokens], sample after sample.

    The batch is padded on the right. Attention is causal and nothing after a sample's end is looked at, so
    padding needs no mask, and it does not matter which token pads.
    """
    width = max(len(sample) for sample in samples)
    ids = torch.zeros((len(samples), width), dtype=torch.long)
    places: list[torch.Tensor] = []
    for index, sample in enumerate(samples):
        ids[index, : len(sample)] = torch.tensor(sample.prompt_ids + sample.target_ids)
        # The position before a token predicts it.
        first = index * width + len(sample.prompt_ids) + sample.trained_from - 1
        places.append(torch.arange(first, first + sample.trained_tokens))
    where = torch.cat(places).to(device)
    ids = ids.to(device)

    causal_lm = model.get_base_model()
    hidden = causal_lm.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)[where]
    labels = ids.flatten()[where + 1]
    # In chunks, so that no more than one chunk of fp32 logits exists at a time when nothing is learnt from
    # them.
    chunks = zip(hidden.split(HEAD_CHUNK), labels.split(HEAD_CHUNK), strict=True)
    return -torch.cat([F.cross_entropy(causal_lm.lm_head(h).float(), y, reduction="none") for h, y in chunks])


def mean_loss(
    model: Any, samples: Sequence[Sample], batches: Sequence[Sequence[int]], device: torch.device
) -> float:
    """Mean over the trained tokens of `batches` (indexes of `samples`), in nats; dropout is off."""
    model.eval()
    total = 0.0
    with torch.no_grad():
        for batch in batches:
            total -= float(target_logprobs(model, [samples[index] for index in batch], device).sum())
    model.train()
    return total / sum(samples[index].trained_tokens for batch in batches for index in batch)
