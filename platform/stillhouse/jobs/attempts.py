"""The rows that remember who worked on a job, from which step to which, and how it ended."""

from django.db.models import F, Min, Value
from django.db.models.functions import Greatest, Least, Now

from stillhouse.core.text import storable
from stillhouse.jobs.models import Attempt, Job, Metric
from workers.contract import JobFailure


def close_attempt(job: Job, outcome: str, failure: JobFailure | None = None) -> None:
    """Note how the current attempt ended; nothing happens when it is noted already.

    A lost one ended with its lease, however long nobody noticed: shares and quotas are counted from this.
    """
    lease_end = Least(Now(), Value(job.lease_until))
    Attempt.objects.filter(job=job, ended_at=None).update(
        ended_at=Greatest(F("started_at"), lease_end if outcome == "lost" else Now()),
        outcome=outcome,
        resumed_step=began_at(job),
        last_step=job.step,
        code=failure.code if failure else "",
        message=storable(failure.message) if failure else "",
    )


def began_at(job: Job) -> int:
    """The step that the current attempt went on from: a worker may have had a newer checkpoint on its disk
    than the one in the store, and then its first point says so."""
    first = Metric.objects.filter(job=job, attempt=job.attempt).aggregate(first=Min("step"))["first"]
    return max(job.resumed_step, first - 1) if first else job.resumed_step


def likely_eta(job: Job, from_step: int) -> float | None:
    """Seconds from `from_step` to the end at the pace of earlier attempts; None without one."""
    steps, seconds = 0, 0.0
    for attempt in Attempt.objects.filter(job=job, ended_at__isnull=False):
        steps += attempt.last_step - attempt.resumed_step
        seconds += (attempt.ended_at - attempt.started_at).total_seconds() if attempt.ended_at else 0.0
    if steps <= 0 or not job.total_steps:
        return None
    return seconds / steps * max(0, job.total_steps - from_step)
