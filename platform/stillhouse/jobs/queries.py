"""Reads of jobs."""

from typing import Any

from stillhouse.jobs.models import Job, Metric


def curve(job: Job, *, attempt: int | None = None, after: int = -1) -> list[dict[str, Any]]:
    """The points of a job's curves as `{"step": 1, "attempt": 1, "loss": ...}`, by step, from `after` + 1 on.

    With `attempt` only those that this attempt said last: it may come by steps that another had done.
    """
    points = Metric.objects.filter(job=job, step__gt=after).order_by("step")
    if attempt is not None:
        points = points.filter(attempt=attempt)
    return [
        {**values, "step": step, "attempt": by}
        for step, by, values in points.values_list("step", "attempt", "values")
    ]
