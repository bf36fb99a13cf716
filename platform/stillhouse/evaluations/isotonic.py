"""From the answers of an evaluation to the probability that an answer like them is right.

Isotonic regression by pool-adjacent-violators (Ayer et al. 1955; Zadrozny and Elkan 2002), on the margins of
the least sure tokens of answer and reasoning less the reasoning's length. The weights are those of a few that
order the answers best: one adapter decides in its reasoning, another where it answers.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from workers.contract import Calibration
from workers.contract.confidence import Step, Sureness, score_of

FEWEST = 30
"""Answers: with fewer, a probability would be a guess."""
REASONING_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0)
LENGTH_WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))

Judged = tuple[Sureness, bool]
"""An answer's sureness, and whether it was right."""


@dataclass(frozen=True)
class AtThreshold:
    """What a threshold would have done on the evaluation's answers."""

    threshold: float
    local: int
    """Answers that stay."""
    right: int
    """Of those."""


def fit(answers: Sequence[Judged], *, fewest: int = FEWEST) -> Calibration | None:
    """None for fewer than `fewest` answers, and where none has a margin."""
    if len(answers) < fewest:
        return None
    said = [answer for answer in answers if answer[0].margin is not None]
    if not said:
        return None
    reasoning, length = max(
        product(REASONING_WEIGHTS, LENGTH_WEIGHTS),
        key=lambda weights: (round(_order(said, *weights), 6), -sum(weights)),
    )
    steps = _rising(sorted((score_of(sure, reasoning, length), right) for sure, right in said))
    return Calibration(rows=len(answers), reasoning_weight=reasoning, length_weight=length, steps=steps)


def at_thresholds(calibration: Calibration, answers: Sequence[Judged]) -> list[AtThreshold]:
    """What stays here at each threshold, and how much of it was right: on the answers it was fitted to."""
    sure = [(calibration.confidence(each), right) for each, right in answers]
    return [
        AtThreshold(
            threshold, sum(one >= threshold for one, _ in sure), sum(r for one, r in sure if one >= threshold)
        )
        for threshold in THRESHOLDS
    ]


def _order(answers: Sequence[Judged], reasoning_weight: float, length_weight: float) -> float:
    """Share of pairs of a right and a wrong answer in which the right one has the higher score (AUC)."""
    right = [score_of(sure, reasoning_weight, length_weight) for sure, good in answers if good]
    wrong = sorted(score_of(sure, reasoning_weight, length_weight) for sure, good in answers if not good)
    won = sum(bisect_left(wrong, score) + bisect_right(wrong, score) for score in right) / 2
    return won / (len(right) * len(wrong)) if right and wrong else 0.5


def _rising(pairs: Sequence[tuple[float, bool]]) -> list[Step]:
    """The rising step line nearest to the pairs: neighbours in the wrong order are pooled."""
    pools: list[tuple[float, int, int]] = []  # lowest score, right, all
    for score, right in pairs:
        pools.append((score, int(right), 1))
        while len(pools) > 1 and pools[-2][1] * pools[-1][2] >= pools[-1][1] * pools[-2][2]:
            _, more, count = pools.pop()
            first, before, rows = pools.pop()
            pools.append((first, before + more, rows + count))
    return [Step(score=score, right=right / count) for score, right, count in pools]
