"""What a model makes of samples, nothing learnt: log-probabilities and the held-out loss."""

from collections.abc import Sequence

import torch

from workers.training.forward import Decoder
from workers.training.loss import label_logprobs
from workers.training.packs import make_pack
from workers.training.plan import pack_samples
from workers.training.render import Sample


def target_logprobs(decoder: Decoder, samples: Sequence[Sample], *, adapter: bool = True) -> torch.Tensor:
    """Log-probabilities of the trained target tokens (fp32, nats), shape [tokens], sample after sample."""
    pack = make_pack(samples, decoder.device)
    with torch.no_grad():
        return label_logprobs(decoder.hidden(pack, adapter=adapter), decoder.head, pack.labels)


def mean_loss(decoder: Decoder, samples: Sequence[Sample]) -> float:
    """Mean over the trained tokens of all samples, in nats; dropout is off."""
    packs = pack_samples(
        range(len(samples)), [len(sample) for sample in samples], decoder.spec.micro_batch_tokens
    )
    total = sum(float(target_logprobs(decoder, [samples[index] for index in pack]).sum()) for pack in packs)
    return -total / sum(sample.trained_tokens for sample in samples)
