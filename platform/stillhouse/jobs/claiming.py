"""A claim: how a queued job comes to belong to one attempt of one worker.

Times are the database's alone, as in `jobs.actions`.
"""

from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models.functions import Now

from stillhouse.core.notify import JOBS, notify
from stillhouse.core.text import storable
from stillhouse.core.transitions import transition
from stillhouse.jobs.actions import lease_end
from stillhouse.jobs.attempts import likely_eta, open_attempt
from stillhouse.jobs.checkpoints import newest_checkpoint
from stillhouse.jobs.errors import Refused
from stillhouse.jobs.models import RUNNING, TRANSITIONS, Checkpoint, Job
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


@dataclass(frozen=True)
class Claimed:
    """A job that now belongs to one attempt of one worker; `token` is shown here and never again."""

    job: Job
    token: str
    checkpoint: Checkpoint | None
    """Where it goes on from; None: from the beginning."""


@transaction.atomic
def claim_job(*, job_id: str, worker: str, key: str = "") -> Claimed:
    """`take_job` in a transaction of its own."""
    return take_job(job_id=job_id, worker=worker, key=key)


def take_job(*, job_id: str, worker: str, key: str = "") -> Claimed:
    """Take a queued job for a worker, in the caller's transaction: of many callers exactly one gets it.

    The others are Refused. Also Refused: a job that pauses after a failure, one whose workspace has used up
    its minutes, and a worker that is drained. The same claim again, by its `key`, gets the same attempt.
    """
    job = _find_to_claim(job_id, worker)
    if (again := _claimed_before(job, worker, key)) is not None:
        return again
    _check_may_claim(job, worker)
    token = token_of(job.pk, job.attempt + 1, key)
    checkpoint = newest_checkpoint(job) if job.attempt else None  # a first attempt asks for nothing in vain
    step = checkpoint.step if checkpoint else 0
    won = transition(
        job,
        TRANSITIONS,
        RUNNING,
        where={"attempt": job.attempt},  # else the checkpoint above may not be the newest any more
        refresh=False,  # every statement is a way there and back while other workers wait
        attempt=job.attempt + 1,
        token_digest=digest_of(token),
        worker=storable(worker),
        lease_until=lease_end(),
        started_at=Now(),
        reported_at=Now(),
        due_at=None,
        resumed_step=step,
        step=step,
        phase="",
        message="",
        eta_seconds=likely_eta(job, step) if job.attempt else None,
    )
    if not won:
        job.refresh_from_db()  # the first of two equal claims may have won while this one waited for the row
        if (again := _claimed_before(job, worker, key)) is not None:
            return again
        raise Refused("not_claimable", f"Job {job_id} is {job.state}, not waiting for a worker.")
    job.state, job.attempt, job.worker, job.resumed_step = RUNNING, job.attempt + 1, storable(worker), step
    open_attempt(job)
    notify(JOBS, job.pk)
    return Claimed(job, token, checkpoint)


def _claimed_before(job: Job, worker: str, key: str) -> Claimed | None:
    """What the same claim got whose answer was lost on the way; its lease counts from now."""
    if not key or job.state != RUNNING:
        return None
    token = token_of(job.pk, job.attempt, key)
    held = Job.objects.filter(
        pk=job.pk, state=RUNNING, worker=storable(worker), token_digest=digest_of(token)
    )
    if not held.update(lease_until=lease_end(), reported_at=Now()):
        return None
    return Claimed(job, token, newest_checkpoint(job) if job.resumed_step else None)


def _find_to_claim(job_id: str, worker: str) -> Any:
    """The job with what `_check_may_claim` asks, in one question; Refused when there is none."""
    for job in Job.objects.raw(_TO_CLAIM, {"job": job_id, "worker": storable(worker)}):
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
