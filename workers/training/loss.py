"""The forward pass up to the loss: the head and its vocabulary-sized logits only where something is learnt."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from workers.training.render import Sample


def target_logprobs(model: Any, samples: Sequence[Sample], device: torch.device) -> torch.Tensor:
    """Log-probabilities (fp32, nats) of the trained target tokens, sample after sample, shape [trained tokens].

    The batch is padded on the right. Attention is causal and nothing after a sample's end is looked at, so padding
    needs no mask, and it does not matter which token pads.
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
    logits = causal_lm.lm_head(hidden).float()
    labels = ids.flatten()[where + 1]
    return -F.cross_entropy(logits, labels, reduction="none")


@torch.no_grad()
def mean_loss(
    model: Any, samples: Sequence[Sample], batches: Sequence[Sequence[int]], device: torch.device
) -> float:
    """Mean over the trained tokens of all `samples`, in nats; `batches` holds their indexes. Dropout is off."""
    model.eval()
    total = 0.0
    for batch in batches:
        total -= float(target_logprobs(model, [samples[index] for index in batch], device).sum())
    model.train()
    return total / sum(samples[index].trained_tokens for batch in batches for index in batch)
