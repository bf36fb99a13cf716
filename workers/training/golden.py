"""Golden samples: what the trained model says about a few answers, so that a replica can prove it says the
same.
"""

from collections.abc import Sequence
from typing import Any

import torch

from workers.contract import GoldenSample
from workers.training.loss import target_logprobs
from workers.training.render import Sample

CANDIDATES_PER_SAMPLE = 4
PROMPT_TOKENS = 1024
TARGET_TOKENS = 64
"""A proof needs the first tokens of an answer, not all of a long one."""


def golden_samples(
    model: Any, samples: Sequence[Sample], count: int, device: torch.device
) -> list[GoldenSample]:
    """Those `count` of a few short candidates on which adapter and base differ most, per token."""
    if count == 0:
        return []
    fitting = [sample for sample in samples if len(sample.prompt_ids) <= PROMPT_TOKENS]
    candidates = sorted(fitting, key=len)[: count * CANDIDATES_PER_SAMPLE]
    model.eval()
    with torch.no_grad():
        found = [_golden(model, _whole_target(sample), device) for sample in candidates]
    model.train()
    return sorted(found, key=_difference, reverse=True)[:count]


def _whole_target(sample: Sample) -> Sample:
    """The start of the answer, with nothing masked: engines give log-probabilities for all of it."""
    return Sample(
        sample.row, sample.turn, sample.prompt_ids, sample.target_ids[:TARGET_TOKENS], trained_from=0
    )


def _golden(model: Any, sample: Sample, device: torch.device) -> GoldenSample:
    with_adapter = target_logprobs(model, [sample], device).tolist()
    with model.disable_adapter():
        without = target_logprobs(model, [sample], device).tolist()
    return GoldenSample(
        prompt_ids=sample.prompt_ids,
        target_ids=sample.target_ids,
        logprobs=[round(value, 6) for value in with_adapter],
        base_logprobs=[round(value, 6) for value in without],
    )


def _difference(golden: GoldenSample) -> float:
    pairs = zip(golden.logprobs, golden.base_logprobs, strict=True)
    return sum(abs(ours - base) for ours, base in pairs) / len(golden.target_ids)
