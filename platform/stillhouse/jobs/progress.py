"""From a worker's report to what is stored of it: step, seconds left, points of the curve."""

import math
from collections.abc import Mapping
from typing import Any

from django.db.models import Case, F, IntegerField, Value, When
from django.db.models.functions import Greatest

from stillhouse.core.text import storable
from stillhouse.jobs.models import Job, Kind, Metric
from workers.contract import MetricPoint, ReportRequest

INTEGER_MAX = 2**31 - 1
BEFORE_THE_FIRST_STEP = ("", "starting", "downloading", "loading", "tokenising")
"""Phases in which a worker cannot know how long the rest takes."""


def step_of(report: ReportRequest) -> Any:
    """Training only goes forward: a report that the network held up, and that was sent again meanwhile, does
    not take the page back. Other jobs count anew in each of their phases."""
    said = Value(min(report.step, INTEGER_MAX))
    forward = When(kind=Kind.TRAIN, then=Greatest(said, F("resumed_step"), F("step")))
    return Case(forward, default=Greatest(said, F("resumed_step")), output_field=IntegerField())


def eta_of(report: ReportRequest) -> Any:
    """Seconds left as the worker says; while it cannot know yet, what was estimated at the claim stands."""
    if report.eta_seconds is not None and math.isfinite(report.eta_seconds):
        return report.eta_seconds
    return F("eta_seconds") if report.phase in BEFORE_THE_FIRST_STEP else None


def store_metrics(job: Job, points: list[MetricPoint]) -> None:
    """A resumed attempt comes by the same steps again: the last word counts."""
    latest = {point.step: point for point in points if point.step <= INTEGER_MAX}
    Metric.objects.bulk_create(
        [
            Metric(job=job, step=step, attempt=job.attempt, values=_finite(point.values))
            for step, point in latest.items()
        ],
        update_conflicts=True,
        unique_fields=["job", "step"],
        update_fields=["attempt", "values", "at"],
    )


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    """JSON has no NaN and no infinity: such a value leaves a gap in the curve."""
    return {storable(name)[:40]: value for name, value in values.items() if math.isfinite(value)}
