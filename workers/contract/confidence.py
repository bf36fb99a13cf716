"""How likely an answer is right, by how sure the model was of its words and how long it reasoned.

Evaluations keep both for every answer; the platform fits a Calibration to them, and the gateway asks it about
each answer of an alias that may escalate. All three take the measure from here.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from workers.contract.base import Message

THINK_END = "</think>"
LEAST_SURE = 0.1
"""Share of the tokens that a margin is the mean of: a wrong word among right ones has to show."""


@dataclass(frozen=True)
class Sureness:
    """Of one answer."""

    margin: float | None
    """By how much the chosen token was likelier than the next best, -1..1, over the least sure tokens of the
    answer; None where it has none, as when the reasoning never ended."""
    reasoning_margin: float | None
    """The same of the reasoning: an answer may only copy what was decided there. None where there is none."""
    reasoning_tokens: int


def sureness(content: Sequence[Mapping[str, Any]]) -> Sureness:
    """Of an answer with OpenAI's `logprobs.content`, two `top_logprobs` a token, reasoning included."""
    first = answer_start(content)
    return Sureness(_least_sure(content[first:]), _least_sure(content[:first]), first)


def answer_start(content: Sequence[Mapping[str, Any]]) -> int:
    """Index of the first token after the reasoning; 0 where there is none."""
    text, ends = "", []
    for entry in content:
        text += entry.get("token") or ""
        ends.append(len(text))
    at = text.rfind(THINK_END)
    return bisect_right(ends, at + len(THINK_END) - 1) + 1 if at >= 0 else 0


def _least_sure(content: Sequence[Mapping[str, Any]]) -> float | None:
    said = [entry for entry in content if (entry.get("token") or "").strip()]
    margins = sorted(margin for entry in said if (margin := _margin(entry)) is not None)
    least = margins[: math.ceil(len(margins) * LEAST_SURE)]
    return sum(least) / len(least) if least else None


def _margin(entry: Mapping[str, Any]) -> float | None:
    """Probability of the chosen token less that of the best other one."""
    top = entry.get("top_logprobs") or []
    others = [each["logprob"] for each in top if each.get("token") != entry.get("token")]
    if not others:
        return None
    return math.exp(entry["logprob"]) - math.exp(max(others))


class Step(Message):
    """Of the rising line from score to probability."""

    score: float
    """From this one on."""
    right: float = Field(ge=0, le=1)


class Calibration(Message):
    """Fitted to the answers of one adapter version on its evaluation data."""

    rows: int
    """Answers it was fitted to."""
    reasoning_weight: float = Field(default=0.0, ge=0)
    """Of the reasoning's margin beside the answer's."""
    length_weight: float = Field(ge=0)
    """Of the logarithm of the reasoning's tokens, which is taken from the margins."""
    steps: list[Step] = Field(min_length=1)
    """By rising score."""

    def confidence(self, sure: Sureness) -> float:
        """Probability that the answer is right; 0 for one that says nothing."""
        if sure.margin is None:
            return 0.0
        score = score_of(sure, self.reasoning_weight, self.length_weight)
        at = bisect_right(self.steps, score, key=lambda step: step.score)
        return self.steps[max(0, at - 1)].right


def score_of(sure: Sureness, reasoning_weight: float, length_weight: float) -> float:
    """The margins, less for long reasoning. For an answer that has a margin; no reasoning is as good as sure
    reasoning."""
    thought = 1.0 if sure.reasoning_margin is None else sure.reasoning_margin
    length = math.log1p(sure.reasoning_tokens)
    return (sure.margin or 0.0) + reasoning_weight * thought - length_weight * length
