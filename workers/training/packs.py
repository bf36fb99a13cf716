"""A pack: documents laid end to end, without padding, and where each of them begins and is learnt from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from workers.training.render import Sample

BUCKET_TOKENS = 32
"""Documents whose lengths round up to the same multiple of this go through CPU attention together."""


CPU_ROUND_TOKENS = 32
"""On a CPU a pack is filled up to a multiple of this with places of no document. The library of the matrix
products keeps a kernel for every shape it has met, and the C library pieces of every size: without it a run
grows by some 25 MB a step (SmolLM2-135M, packs of about 690 tokens)."""


@dataclass(frozen=True)
class Bucket:
    """Documents of about the same length, as a rectangle of `documents` x `length` places."""

    documents: int
    length: int
    """Places of a row: at least the tokens of the longest document."""
    positions: torch.Tensor
    """[documents * length] position in the pack of every place's token. Places behind a document's end have
    that of its last token."""
    empty: torch.Tensor
    """Those places."""


@dataclass(frozen=True)
class Pack:
    """T tokens of D documents, P of them to be predicted; on a CPU some places of no document follow them."""

    ids: torch.Tensor
    """[T] token ids."""
    positions: torch.Tensor
    """[T] positions, counted from 0 in every document."""
    lengths: tuple[int, ...]
    """Tokens of each document."""
    boundaries: torch.Tensor
    """[D + 1] int32: where documents begin, and T."""
    where: torch.Tensor
    """[P] positions whose next token is in the loss; never the last of a document."""
    labels: torch.Tensor
    """[P] those next tokens."""
    buckets: tuple[Bucket, ...]
    """All documents for attention on a CPU; none on a GPU, whose kernel takes `boundaries`."""
    places: torch.Tensor
    """[sum(lengths)] the place of every token where the rectangles of the buckets follow each other."""

    @property
    def longest(self) -> int:
        return max(self.lengths)


def make_pack(samples: Sequence[Sample], device: torch.device) -> Pack:
    """Lay the samples end to end; everything that a forward pass has to know is computed here, once."""
    lengths = tuple(len(sample) for sample in samples)
    starts = [sum(lengths[:index]) for index in range(len(lengths) + 1)]
    ids = torch.tensor([token for sample in samples for token in sample.prompt_ids + sample.target_ids])
    where = torch.cat([_trained(sample, start) for sample, start in zip(samples, starts, strict=False)])
    positions = torch.cat([torch.arange(length) for length in lengths])
    labels = ids[where + 1]
    buckets = tuple(_buckets(lengths, starts)) if device.type == "cpu" else ()
    if device.type == "cpu":
        empty = torch.zeros(-len(ids) % CPU_ROUND_TOKENS, dtype=torch.int64)
        ids, positions = torch.cat([ids, empty]), torch.cat([positions, empty])

    def there(tensor: torch.Tensor) -> torch.Tensor:
        """On the device; from pinned memory, so that the host does not wait for the copy."""
        return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)

    return Pack(
        ids=there(ids),
        positions=there(positions),
        lengths=lengths,
        boundaries=there(torch.tensor(starts, dtype=torch.int32)),
        where=there(where),
        labels=there(labels),
        buckets=buckets,
        places=_places(buckets, starts[-1]),
    )


def _trained(sample: Sample, start: int) -> torch.Tensor:
    """The position before a token predicts it."""
    first = start + len(sample.prompt_ids) + sample.trained_from - 1
    return torch.arange(first, first + sample.trained_tokens)


def _buckets(lengths: Sequence[int], starts: Sequence[int]) -> Iterator[Bucket]:
    longest_first = sorted(range(len(lengths)), key=lambda each: (-lengths[each], each))
    for length, group in groupby(longest_first, key=lambda each: _rounded(lengths[each])):
        documents = list(group)
        ends = torch.tensor([lengths[each] for each in documents]).unsqueeze(1)
        first = torch.tensor([starts[each] for each in documents]).unsqueeze(1)
        inside = torch.arange(length).expand(len(documents), length)
        yield Bucket(
            documents=len(documents),
            length=length,
            positions=(first + inside.minimum(ends - 1)).flatten(),
            empty=(inside >= ends).flatten().nonzero().flatten(),
        )


def _places(buckets: Sequence[Bucket], tokens: int) -> torch.Tensor:
    places = torch.empty(tokens if buckets else 0, dtype=torch.int64)
    begin = 0
    for bucket in buckets:
        taken = torch.ones(len(bucket.positions), dtype=torch.bool).index_fill_(0, bucket.empty, 0)
        places[bucket.positions[taken]] = begin + taken.nonzero().flatten()
        begin += len(taken)
    return places


def _rounded(length: int) -> int:
    """Up to a multiple of `BUCKET_TOKENS`, or of about an eighth of a long document."""
    step = max(BUCKET_TOKENS, 1 << max(0, length.bit_length() - 4))
    return -(-length // step) * step
