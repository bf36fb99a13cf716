"""Golden samples: what the trained model says about a few answers, so that a replica can prove it says the
same.
"""

from collections.abc import Sequence

from workers.contract import GoldenSample
from workers.training.forward import Decoder
from workers.training.measure import target_logprobs
from workers.training.render import Sample

CANDIDATES_PER_SAMPLE = 4
PROMPT_TOKENS = 1024
TARGET_TOKENS = 64
"""A proof needs the first tokens of an answer, not all of a long one."""


def golden_samples(decoder: Decoder, samples: Sequence[Sample], count: int) -> list[GoldenSample]:
    """Those `count` of a few short candidates on which adapter and base differ most, per token."""
    fitting = [sample for sample in samples if len(sample.prompt_ids) <= PROMPT_TOKENS]
    candidates = sorted(fitting, key=len)[: count * CANDIDATES_PER_SAMPLE]
    found = [_golden(decoder, _whole_target(sample)) for sample in candidates]
    return sorted(found, key=_difference, reverse=True)[:count]


def _whole_target(sample: Sample) -> Sample:
    """The start of the answer, with nothing masked: engines give log-probabilities for all of it."""
    return Sample(
        sample.row, sample.turn, sample.prompt_ids, sample.target_ids[:TARGET_TOKENS], trained_from=0
    )


def _golden(decoder: Decoder, sample: Sample) -> GoldenSample:
    with_adapter = target_logprobs(decoder, [sample]).tolist()
    without = target_logprobs(decoder, [sample], adapter=False).tolist()
    return GoldenSample(
        prompt_ids=sample.prompt_ids,
        target_ids=sample.target_ids,
        logprobs=[round(value, 6) for value in with_adapter],
        base_logprobs=[round(value, 6) for value in without],
    )


def _difference(golden: GoldenSample) -> float:
    pairs = zip(golden.logprobs, golden.base_logprobs, strict=True)
    return sum(abs(ours - base) for ours, base in pairs) / len(golden.target_ids)
