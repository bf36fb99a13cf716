"""Equal loss: what has to hold before a speed counts. Arithmetic on curves; nothing is trained here."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

STEP0_RELATIVE = 1e-3
GRADIENT_COSINE = 0.999
CURVE_SPREADS = 2.0
"""A curve may be this many times as far from the baselines as they are from each other."""


@dataclass(frozen=True)
class Check:
    """One comparison, with the figure that decided it and the one it had to keep to."""

    name: str
    passed: bool
    figure: float
    limit: float


def check_step0(ours: float, reference: float) -> Check:
    """Step-0 loss against the fp32 reference, relative."""
    difference = abs(ours - reference) / abs(reference)
    return Check("step0_loss", difference <= STEP0_RELATIVE, difference, STEP0_RELATIVE)


def check_gradients(cosines: Mapping[str, float]) -> Check:
    """The worst cosine of any LoRA matrix between the engine's gradient and the reference's."""
    worst = min(cosines.values())
    return Check("gradient_cosine", worst > GRADIENT_COSINE, worst, GRADIENT_COSINE)


def check_curve(ours: Sequence[float], first: Sequence[float], second: Sequence[float]) -> Check:
    """Mean distance per step from the middle of two baseline runs, against twice their own distance."""
    if not len(ours) == len(first) == len(second):
        raise ValueError(f"Curves of {len(ours)}, {len(first)} and {len(second)} steps cannot be compared.")
    spread = statistics.fmean(abs(a - b) for a, b in zip(first, second, strict=True))
    middle = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    distance = statistics.fmean(abs(a - b) for a, b in zip(ours, middle, strict=True))
    limit = CURVE_SPREADS * spread
    return Check(f"loss_curve_{len(ours)}_steps", distance <= limit, distance, limit)


def check_heldout(ours: Sequence[float], baseline: Sequence[float]) -> Check:
    """Held-out loss, mean over the seeds, against the mean and the spread of the baseline's seeds."""
    distance = abs(statistics.fmean(ours) - statistics.fmean(baseline))
    spread = max(baseline) - min(baseline)
    return Check(f"heldout_loss_{len(baseline)}_seeds", distance <= spread, distance, spread)


def verdict(checks: Sequence[Check]) -> dict[str, Any]:
    """The `loss_gate` of the result line."""
    return {
        "passed": all(check.passed for check in checks),
        "checks": [asdict(check) for check in checks],
    }
