"""What became of a job so far, in words; and why it waits and for how long."""

import heapq
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import Avg, F
from django.db.models.functions import Now
from django.db.models.lookups import LessThan
from django.utils import timezone

from stillhouse.jobs.attempts import began_at
from stillhouse.jobs.models import QUEUED, RUNNING, SUCCEEDED, Attempt, Job, Worker
from stillhouse.jobs.shares import live_slots, quota_of, turns

ENDS = {
    "running": "at work",
    "succeeded": "succeeded",
    "failed": "failed at step {step}",
    "cancelled": "cancelled at step {step}",
    "paused": "paused at step {step}",
    "lost": "worker lost at step {step}",
    "handed_back": "handed back at step {step}",
}
RECENT = 20
SILENCE = timedelta(seconds=15)
"""A worker that has not reported for this long is missed."""


@dataclass(frozen=True)
class Entry:
    """One attempt: who, from where, and how it ended."""

    number: int
    worker: str
    started_at: datetime
    ended_at: datetime | None
    text: str
    message: str
    outcome: str


def timeline(job: Job) -> list[Entry]:
    """The attempts of a job, the first one first."""
    return [_entry(job, attempt) for attempt in Attempt.objects.filter(job=job).order_by("number")]


def _entry(job: Job, attempt: Attempt) -> Entry:
    current = attempt.ended_at is None
    began = began_at(job) if current else attempt.resumed_step
    step = job.step if current else attempt.last_step
    start = f"resumed from step {began}" if began else "began"
    end = ENDS.get(attempt.outcome, attempt.outcome).format(step=step)
    return Entry(
        attempt.number,
        attempt.worker,
        attempt.started_at,
        attempt.ended_at,
        f"{start} on {attempt.worker}, {end}",
        attempt.message,
        attempt.outcome,
    )


@dataclass(frozen=True)
class Waiting:
    """Where a queued job stands, or what a running one hangs on."""

    text: str
    position: int | None = None
    """From 1; None while its turn cannot come."""
    starts_in: float | None = None
    """Seconds, estimated from how long jobs of this queue took lately; None when nothing is known."""


def waiting(job: Job) -> Waiting | None:
    """Why a queued job does not run yet, or that nobody hears of a running one; None where neither is so."""
    if job.state == RUNNING:
        return _silent(job)
    return _in_line(job) if job.state == QUEUED else None


def _in_line(job: Job) -> Waiting:
    if job.due_at and job.due_at > timezone.now():
        return Waiting("The last attempt failed. The next one begins after a short pause.")
    quota = quota_of(job.workspace, job.queue)
    if quota is not None and quota.used_up:
        return Waiting(
            f"Waits for the next month: {job.workspace.name} has used {quota.used:.0f} of its {quota.limit} "
            f"minutes on {job.queue} workers. The operator can give it more."
        )
    order = turns(job.queue)
    if job.pk not in order:
        return Waiting("Waiting for a worker to take it.")
    position = order.index(job.pk) + 1
    known = Worker.objects.filter(queue=job.queue, revoked_at=None)
    if known.exists() and not live_slots(job.queue):
        return Waiting(
            f"Number {position} in line. No {job.queue} worker takes work now; the page Fleet says why.",
            position,
        )
    starts_in = _starts_in(job.queue, position)
    about = "" if starts_in is None else f", starts in about {_words(starts_in)}"
    return Waiting(f"Number {position} in line{about}.", position, starts_in)


def _silent(job: Job) -> Waiting | None:
    """A worker that is lost is noticed when its lease ends: until then nobody is to believe that it works."""
    silence = max(SILENCE, timedelta(seconds=5 * settings.REPORT_SECONDS))
    found = (
        Job.objects.filter(pk=job.pk, state=RUNNING, reported_at__lt=Now() - silence)
        .annotate(overdue=LessThan(F("lease_until"), Now() - silence))
        .first()
    )
    if found is None or found.reported_at is None:
        return None
    if found.overdue:
        return Waiting(
            f"The worker {found.worker} is lost, and the platform's keeper, who gives its work to another "
            "one, does not do so. Ask the operator to look after it."
        )
    return Waiting(
        f"No word from {found.worker} since {found.reported_at:%H:%M:%S} UTC. If it stays silent, another "
        "worker gets the work, from the last checkpoint."
    )


def _starts_in(queue: str, position: int) -> float | None:
    """Seconds until `position` jobs were taken: a slot frees when its job ends, then every mean duration."""
    recent = Attempt.objects.filter(queue=queue, outcome=SUCCEEDED).order_by("-pk")[:RECENT].values("pk")
    mean: timedelta | None = Attempt.objects.filter(pk__in=recent).aggregate(
        mean=Avg(F("ended_at") - F("started_at"))
    )["mean"]
    running = list(Job.objects.filter(queue=queue, state=RUNNING).values_list("eta_seconds", flat=True))
    slots = max(live_slots(queue) or 0, len(running), 1)
    if mean is None and (position > slots - len(running)):
        return None
    usual = mean.total_seconds() if mean else 0.0
    frees = [usual / 2 if eta is None else eta for eta in running] + [0.0] * (slots - len(running))
    heapq.heapify(frees)
    start = 0.0
    for _ in range(position):
        start = heapq.heappop(frees)
        heapq.heappush(frees, start + usual)
    return start


def _words(seconds: float) -> str:
    """A rough time: nobody can promise seconds here."""
    if seconds < 60:
        return "a minute"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.0f} h"
