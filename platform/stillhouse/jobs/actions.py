"""Every change of a job: queue, claim, report, finish, cancel, reap.

Times are the database's alone: a worker or keeper whose clock is wrong neither gains nor loses a lease.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from stillhouse.accounts.models import Membership, User, Workspace
from stillhouse.audit.actions import record
from stillhouse.core.errors import NotFound
from stillhouse.core.notify import JOBS, OUTBOX, notify
from stillhouse.core.text import storable
from stillhouse.core.transitions import transition
from stillhouse.jobs.errors import Refused
from stillhouse.jobs.models import (
    CANCELLED,
    FAILED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    TRANSITIONS,
    Job,
    Kind,
    Metric,
    Outbox,
)
from stillhouse.jobs.tokens import digest_of, new_token
from workers.contract import JobFailure, MetricPoint, ReportRequest

SLOW_STORE = 10 * 1024**2
"""Bytes a second that the object store gives at the least."""
Action = Literal["continue", "checkpoint", "cancel"]


@dataclass(frozen=True)
class Claimed:
    """A job that now belongs to one attempt of one worker; `token` is shown here and never again."""

    job: Job
    token: str


@transaction.atomic
def queue_job(
    *,
    workspace: Workspace,
    kind: Kind | str,
    queue: str,
    subject: str,
    spec: Mapping[str, Any],
    by: User | None,
) -> Job:
    """Write a job and its doorbell: the caller's transaction commits both or neither."""
    job = Job.objects.create(
        workspace=workspace, kind=kind, queue=queue, subject=subject, spec=dict(spec), created_by=by
    )
    ring_later(job)
    notify(JOBS, job.pk)
    return job


def ring_later(job: Job) -> None:
    """Put a doorbell for a queued job into the outbox, in the caller's transaction."""
    Outbox.objects.create(job=job)
    notify(OUTBOX)


@transaction.atomic
def claim_job(*, job_id: str, worker: str) -> Claimed:
    """Take a queued job for a worker: of many callers exactly one gets it, the others are Refused."""
    job = Job.objects.filter(pk=job_id).first()
    if job is None:
        raise Refused("unknown_job", f"There is no job {job_id}.")
    token = new_token()
    won = transition(
        job,
        TRANSITIONS,
        RUNNING,
        attempt=F("attempt") + 1,
        token_digest=digest_of(token),
        worker=storable(worker),
        lease_until=_lease_end(),
        started_at=Now(),
        reported_at=Now(),
        phase="",
        message="",
        eta_seconds=None,
    )
    if not won:
        raise Refused("not_claimable", f"Job {job_id} is {job.state}, not waiting for a worker.")
    notify(JOBS, job.pk)
    return Claimed(job, token)


@transaction.atomic
def report_job(*, job_id: str, token: str, report: ReportRequest) -> Action:
    """Store progress, renew the lease, say whether to go on. Refused for any but the current attempt."""
    held = Job.objects.filter(pk=job_id, state=RUNNING, token_digest=digest_of(token))
    updated = held.update(
        lease_until=_lease_end(),
        reported_at=Now(),
        phase=storable(report.phase),
        message=storable(report.message),
        step=min(report.step, _INTEGER_MAX),
        total_steps=min(report.total_steps, _INTEGER_MAX),
        eta_seconds=report.eta_seconds
        if report.eta_seconds is not None and math.isfinite(report.eta_seconds)
        else None,
        log_tail=storable(report.log_tail),
    )
    if not updated:
        raise _stale(job_id)
    job = held.only("attempt", "cancel_requested_at").get()
    _store_metrics(job, report.metrics)
    notify(JOBS, job_id)
    return "cancel" if job.cancel_requested_at else "continue"


def check_token(*, job_id: str, token: str) -> Job:
    """The running job whose current attempt holds this token; Refused otherwise."""
    job = Job.objects.filter(pk=job_id, state=RUNNING, token_digest=digest_of(token)).first()
    if job is None:
        raise _stale(job_id)
    return job


def hold_for_finish(*, job_id: str, token: str, uploaded: int) -> Job:
    """`check_token`, with the lease long enough for us to hash the `uploaded` bytes."""
    hashing = timedelta(seconds=uploaded / SLOW_STORE)
    renewed = Job.objects.filter(pk=job_id, state=RUNNING, token_digest=digest_of(token)).update(
        lease_until=_lease_end() + hashing
    )
    if not renewed:
        raise _stale(job_id)
    return check_token(job_id=job_id, token=token)


def already_finished(*, job_id: str, token: str) -> bool:
    """Whether the attempt with this token ended by its own word: its finish now comes again."""
    return Job.objects.filter(pk=job_id, token_digest=digest_of(token)).exclude(state=RUNNING).exists()


@transaction.atomic
def finish_job(
    *,
    job_id: str,
    token: str,
    apply: Callable[[Job], None] | None = None,
    failure: JobFailure | None = None,
    cancelled: bool = False,
) -> bool:
    """End an attempt: success (`apply` writes what it means, in this transaction), failure, or cancelled.

    The user's faults are final; the platform's go back to the queue until the attempts are used up. Returns
    False when this attempt had finished before (then nothing is changed); Refused when the token is another
    attempt's.
    """
    job = Job.objects.select_for_update().filter(pk=job_id).first()
    if job is None:
        raise Refused("unknown_job", f"There is no job {job_id}.")
    if job.token_digest != digest_of(token):
        raise _stale(job_id)
    if job.state != RUNNING:
        return False
    if failure is not None:
        _fail(job, failure, retry=failure.fault == "platform", keep_token=True)
    elif cancelled and job.cancel_requested_at is None:
        # Nobody asked: the worker itself was told to stop (a drain, a shutdown); somebody else takes over.
        _fail(job, _STOPPED, retry=True, keep_token=True)
    else:
        if not cancelled and apply is not None:
            apply(job)
        _end(job, CANCELLED if cancelled else SUCCEEDED, failure=None)
    return True


@transaction.atomic
def request_cancel(*, by: Membership, job: Job) -> None:
    """Cancel a queued job at once; ask the worker of a running one to stop. An ended job is left as it is.

    Rights are the caller's to check (`run.cancel`); the workspace is checked here.
    """
    locked = Job.objects.select_for_update().filter(pk=job.pk, workspace=by.workspace).first()
    if locked is None:
        raise NotFound("job")
    if locked.state == QUEUED:
        _end(locked, CANCELLED, failure=None, cancel_requested_at=Now())
    elif locked.state == RUNNING and locked.cancel_requested_at is None:
        Job.objects.filter(pk=locked.pk).update(cancel_requested_at=Now())
        notify(JOBS, locked.pk)
    else:
        job.refresh_from_db()
        return
    record(
        workspace=by.workspace,
        by=by.user,
        action="job.cancel_requested",
        object_id=locked.pk,
        details={"kind": locked.kind, "subject": locked.subject},
    )
    job.refresh_from_db()


def reap_lost_leases() -> int:
    """Take back the jobs whose worker has not reported within its lease; returns how many."""
    lost = Job.objects.filter(state=RUNNING, lease_until__lt=Now()).values_list("pk", flat=True)
    return sum(_reap(job_id) for job_id in list(lost[:500]))


@transaction.atomic
def _reap(job_id: str) -> bool:
    job = (
        Job.objects.select_for_update(skip_locked=True)
        .filter(pk=job_id, state=RUNNING, lease_until__lt=Now())
        .first()
    )
    if job is None:
        return False
    _fail(job, _lost(job), retry=True, keep_token=False)
    return True


def _fail(job: Job, failure: JobFailure, *, retry: bool, keep_token: bool) -> None:
    """End an attempt that failed: back to the queue when it may be tried again, else for good.

    `keep_token`: the attempt ended by its own word, and may say so again. A lost one is refused from here on.
    """
    body: dict[str, Any] = {**failure.model_dump(), "message": storable(failure.message)}
    digest = job.token_digest if keep_token else ""
    if retry and job.cancel_requested_at is not None:
        _end(job, CANCELLED, failure=body, token_digest=digest)
    elif not retry or job.attempt >= job.max_attempts:
        _end(job, FAILED, failure=body, token_digest=digest)
    else:
        _move(job, QUEUED, failure=body, token_digest=digest, lease_until=None, eta_seconds=None)
        ring_later(job)
        notify(JOBS, job.pk)


def _end(job: Job, state: str, *, failure: dict[str, Any] | None, **changes: Any) -> None:
    _move(job, state, failure=failure, finished_at=Now(), lease_until=None, eta_seconds=None, **changes)
    record(
        workspace=job.workspace,
        by=None,
        action=f"job.{state}",
        object_id=job.pk,
        details={
            "kind": job.kind,
            "subject": job.subject,
            "attempt": job.attempt,
            "worker": job.worker,
            **({"code": failure["code"]} if failure else {}),
        },
    )
    notify(JOBS, job.pk)


def _move(job: Job, state: str, **changes: Any) -> None:
    """`transition` of a row that is locked, so that it cannot fail for another's doing."""
    if not transition(job, TRANSITIONS, state, **changes):
        raise RuntimeError(f"job {job.pk} cannot go from {job.state} to {state}")


def _store_metrics(job: Job, points: list[MetricPoint]) -> None:
    """A resumed attempt comes by the same steps again: the last word counts."""
    latest = {point.step: point for point in points if point.step <= _INTEGER_MAX}
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


def _lease_end() -> Any:
    return Now() + timedelta(seconds=settings.LEASE_SECONDS)


def _stale(job_id: str) -> Refused:
    return Refused("stale_token", f"Job {job_id} no longer belongs to this attempt.")


def _lost(job: Job) -> JobFailure:
    tries = f"attempt {job.attempt} of {job.max_attempts}"
    return JobFailure(
        fault="platform",
        code="worker_lost",
        message=(
            f"The worker {job.worker} stopped reporting (step {job.step}, {tries}). "
            "If this happens again, ask the operator to look at that machine's memory and log."
        )[:2000],
    )


_INTEGER_MAX = 2**31 - 1
_STOPPED = JobFailure(
    fault="platform",
    code="worker_stopped",
    message="The worker was stopped while it worked on this job. Another one takes it over.",
)
