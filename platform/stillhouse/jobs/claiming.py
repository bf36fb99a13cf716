"""A claim: how a queued job comes to belong to one attempt of one worker.

Times are the database's alone, as in `jobs.actions`.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import connection
from django.db.models.functions import Now

from stillhouse.core.notify import JOBS
from stillhouse.core.text import storable
from stillhouse.jobs.actions import lease_end
from stillhouse.jobs.attempts import likely_eta
from stillhouse.jobs.checkpoints import newest_checkpoint
from stillhouse.jobs.errors import Refused
from stillhouse.jobs.models import QUEUED, RUNNING, Checkpoint, Job
from stillhouse.jobs.shares import check_quota_at_claim
from stillhouse.jobs.tokens import digest_of, token_of

_UNREAD = ("log_tail", "message", "phase", "failure")
_COLUMNS = ", ".join(
    f"job.{field.column}" for field in Job._meta.concrete_fields if field.name not in _UNREAD
)
# As text: for Django to put it together anew is half the work of a claim, while other workers wait.
_TO_CLAIM = f"""
    SELECT {_COLUMNS},
        coalesce(job.due_at > statement_timestamp(), false) AS waits,
        EXISTS (SELECT 1 FROM jobs_share AS share WHERE share.workspace_id = job.workspace_id
            AND share.queue = job.queue AND share.minutes_per_month IS NOT NULL) AS limited,
        EXISTS (SELECT 1 FROM jobs_worker AS worker WHERE worker.name = %(worker)s
            AND worker.draining_since IS NOT NULL) AS drained
    FROM jobs_job AS job WHERE job.id = %(job)s"""
# One statement, which commits by itself: between two of them other requests get their turn, and make it late.
_TAKE = """
    WITH taken AS (
        UPDATE jobs_job SET state = 'running', attempt = attempt + 1, token_digest = %(digest)s,
            worker = %(worker)s, lease_until = statement_timestamp() + %(lease)s,
            started_at = statement_timestamp(), reported_at = statement_timestamp(), due_at = NULL,
            resumed_step = %(step)s, step = %(step)s, phase = '', message = '', eta_seconds = %(eta)s
        WHERE id = %(job)s AND state = 'queued' AND attempt = %(attempt)s
        RETURNING *
    ), opened AS (
        INSERT INTO jobs_attempt (job_id, workspace_id, queue, number, worker, resumed_step, last_step,
            started_at, outcome, code, message)
        SELECT id, workspace_id, queue, attempt, worker, step, step, started_at, state, '', '' FROM taken
    )
    SELECT pg_notify(%(channel)s, id) FROM taken"""


@dataclass(frozen=True)
class Offer:
    """A job that a worker may take now, or has taken already: see `take`."""

    job: Job
    worker: str
    key: str


@dataclass(frozen=True)
class Claimed:
    """A job that now belongs to one attempt of one worker; `token` is shown here and never again."""

    job: Job
    token: str
    checkpoint: Checkpoint | None
    """Where it goes on from; None: from the beginning."""


def claim_job(*, job_id: str, worker: str, key: str = "") -> Claimed:
    """`take` what `offer` found."""
    return take(offer(job_id=job_id, worker=worker, key=key))


def offer(*, job_id: str, worker: str, key: str = "") -> Offer:
    """What the worker would get; nothing is changed yet.

    Refused: a job that does not wait for a worker, or pauses after a failure, one whose workspace has used up
    its minutes, and a worker that is drained. With a `key`, a job that runs may do so by this very claim.
    """
    worker = storable(worker)
    job = _find_to_claim(job_id, worker)
    if job.state == QUEUED:
        _check_may_claim(job, worker)
    elif not (key and job.state == RUNNING):
        raise _not_claimable(job)
    return Offer(job, worker, key)


def take(offered: Offer) -> Claimed:
    """Make the job an attempt of this worker: of many callers exactly one gets it, the others are Refused.

    The same claim again, by its `key`, gets the same attempt.
    """
    job = offered.job
    token = token_of(job.pk, job.attempt + 1, offered.key)
    checkpoint = newest_checkpoint(job) if job.attempt else None  # a first attempt asks for nothing in vain
    step = checkpoint.step if checkpoint else 0
    values = {
        "job": job.pk,
        "attempt": job.attempt,  # else the checkpoint above may not be the newest any more
        "digest": digest_of(token),
        "worker": offered.worker,
        "lease": timedelta(seconds=settings.LEASE_SECONDS),
        "step": step,
        "eta": likely_eta(job, step) if job.attempt else None,
        "channel": JOBS,
    }
    with connection.cursor() as cursor:
        cursor.execute(_TAKE, values)
        won = cursor.fetchone()
    if not won:
        job.refresh_from_db()  # an equal claim may have been before this one
        if (again := _claimed_before(offered)) is not None:
            return again
        raise _not_claimable(job)
    job.state, job.attempt, job.worker, job.resumed_step = RUNNING, job.attempt + 1, offered.worker, step
    return Claimed(job, token, checkpoint)


def _claimed_before(offered: Offer) -> Claimed | None:
    """What the same claim got whose answer was lost on the way; its lease counts from now."""
    job = offered.job
    if not offered.key or job.state != RUNNING:
        return None
    token = token_of(job.pk, job.attempt, offered.key)
    held = Job.objects.filter(pk=job.pk, state=RUNNING, worker=offered.worker, token_digest=digest_of(token))
    if not held.update(lease_until=lease_end(), reported_at=Now()):
        return None
    return Claimed(job, token, newest_checkpoint(job) if job.resumed_step else None)


def _find_to_claim(job_id: str, worker: str) -> Any:
    """The job with what `_check_may_claim` asks, in one question; Refused when there is none."""
    for job in Job.objects.raw(_TO_CLAIM, {"job": job_id, "worker": worker}):
        return job
    raise Refused("unknown_job", f"There is no job {job_id}.")


def _check_may_claim(job: Any, worker: str) -> None:
    """Raises Refused unless this worker may have the job now."""
    if job.drained:
        raise Refused("not_claimable", f"The worker {worker[:60]} is drained: it gets no new work.")
    if job.waits:
        raise Refused("not_claimable", f"Job {job.pk} waits a while after a failure.")
    if job.limited:
        check_quota_at_claim(job)


def _not_claimable(job: Job) -> Refused:
    return Refused("not_claimable", f"Job {job.pk} is {job.state}, not waiting for a worker.")
