"""Every change of a job by workers and by the platform: queue, report, finish, reap.

Claims are in `jobs.claiming`; what people ask for (pause, resume, cancel, retry) is in `jobs.control`. Times
are the database's alone: a worker or keeper whose clock is wrong neither gains nor loses a lease.
"""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Literal

from django.conf import settings
from django.db import transaction
from django.db.models import F, QuerySet, Value
from django.db.models.functions import Greatest, Now

from stillhouse.accounts.models import User, Workspace
from stillhouse.audit.actions import record
from stillhouse.core.notify import JOBS, OUTBOX, notify
from stillhouse.core.text import storable
from stillhouse.core.transitions import transition
from stillhouse.jobs.attempts import close_attempt
from stillhouse.jobs.checkpoints import drop_checkpoints, drop_resumed
from stillhouse.jobs.errors import Refused
from stillhouse.jobs.models import (
    CANCELLED,
    FAILED,
    PAUSED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    TRANSITIONS,
    Checkpoint,
    Job,
    Kind,
    Outbox,
)
from stillhouse.jobs.progress import INTEGER_MAX, eta_of, step_of, store_metrics
from stillhouse.jobs.tokens import digest_of
from workers.contract import CHECKPOINT_DAMAGED, JobFailure, ReportRequest

SLOW_STORE = 10 * 1024**2
"""Bytes a second that the object store gives at the least."""
PAUSE_PATIENCE = timedelta(seconds=120)
"""How long a pause waits for the checkpoint it asked for; then the job goes back with the one before."""
LONG_ATTEMPT = timedelta(hours=1)
"""One that worked for longer, and left a checkpoint, got far."""
Action = Literal["continue", "checkpoint", "cancel"]


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
def report_job(*, job_id: str, token: str, report: ReportRequest) -> Action:
    """Store progress, renew the lease, say whether to go on. Refused for any but the current attempt."""
    held = _held(job_id, token)
    updated = held.update(
        lease_until=lease_end(),
        reported_at=Now(),
        phase=storable(report.phase),
        message=storable(report.message),
        step=step_of(report),
        total_steps=Greatest(Value(min(report.total_steps, INTEGER_MAX)), F("total_steps")),
        eta_seconds=eta_of(report),
        log_tail=storable(report.log_tail),
    )
    if not updated:
        raise _stale(job_id)
    job = held.defer("spec", "log_tail").get()
    store_metrics(job, report.metrics)
    notify(JOBS, job_id)
    return _action(job)


def renew_lease(*, job_id: str, token: str) -> None:
    """The attempt lives, whatever of its report cannot be kept: this takes no room that is not there."""
    if not _held(job_id, token).update(lease_until=lease_end(), reported_at=Now()):
        raise _stale(job_id)


def _action(job: Job) -> Action:
    """A pause is a checkpoint and then a stop; where there is nothing to keep it is a stop at once."""
    if job.cancel_requested_at is not None:
        return "cancel"
    if job.pause_requested_at is None:
        return "continue"
    kept = Checkpoint.objects.filter(
        job=job, attempt=job.attempt, created_at__gte=job.pause_requested_at
    ).exists()
    late = Job.objects.filter(pk=job.pk, pause_requested_at__lt=Now() - PAUSE_PATIENCE).exists()
    nothing_to_keep = job.kind != Kind.TRAIN or job.step <= job.resumed_step
    return "cancel" if kept or late or nothing_to_keep else "checkpoint"


def check_token(*, job_id: str, token: str) -> Job:
    """The running job whose current attempt holds this token; Refused otherwise."""
    job = _held(job_id, token).first()
    if job is None:
        raise _stale(job_id)
    return job


def time_to_finish(uploaded: int) -> timedelta:
    """A lease, and as long as we may need to hash so many bytes."""
    return timedelta(seconds=settings.LEASE_SECONDS + uploaded / SLOW_STORE)


def hold_for_finish(*, job_id: str, token: str, uploaded: int) -> Job:
    """`check_token`, with the lease long enough for us to hash the `uploaded` bytes."""
    if not _held(job_id, token).update(lease_until=Now() + time_to_finish(uploaded)):
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

    The user's faults are final; the platform's go back to the queue until the attempts are used up. A stop
    that nobody asked for (a drain, a shutdown) hands the job back, and counts for nothing. Returns False when
    this attempt had finished before (then nothing is changed); Refused when the token is another attempt's.
    """
    job = Job.objects.select_for_update().filter(pk=job_id).first()
    if job is None:
        raise Refused("unknown_job", f"There is no job {job_id}.")
    if job.token_digest != digest_of(token):
        raise _stale(job_id)
    if job.state != RUNNING:
        return False
    if failure is not None:
        _fail(job, failure, outcome="failed")
    elif not cancelled:
        if apply is not None:
            apply(job)
        close_attempt(job, SUCCEEDED)
        end_job(job, SUCCEEDED, failure=None)
        drop_checkpoints(job)
    elif job.cancel_requested_at is not None:
        close_attempt(job, CANCELLED)
        end_job(job, CANCELLED, failure=None)
    elif job.pause_requested_at is not None:
        close_attempt(job, PAUSED)
        pause_job(job)
    else:
        _fail(job, _STOPPED, outcome="failed")
    notify(OUTBOX)  # a slot is free
    return True


def reap_lost_leases() -> int:
    """Take back the jobs whose worker has not reported within its lease; returns how many.

    Where the database's clock was set back, leases that began in its future begin now.
    """
    Job.objects.filter(state=RUNNING, reported_at__gt=Now() + timedelta(seconds=1)).update(
        reported_at=Now(), lease_until=lease_end()
    )
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
    _fail(job, _lost(job), outcome="lost")
    return True


def _fail(job: Job, failure: JobFailure, *, outcome: Literal["failed", "lost"]) -> None:
    """End an attempt that failed: back to the queue when it may be tried again, else for good.

    An attempt that ended by its own word may say so again; a lost one is refused from here on. A damaged
    checkpoint is no failure of the job: there are few of them, and it goes on from the one before, or begins.
    """
    damaged = failure.code == CHECKPOINT_DAMAGED and drop_resumed(job)
    handed_back = failure.code == _STOPPED.code
    blameless = handed_back or damaged
    body: dict[str, Any] = {**failure.model_dump(), "message": storable(failure.message)}
    failures = job.failures if blameless else _failures_with_this(job)
    changes = {"failures": failures, "token_digest": "" if outcome == "lost" else job.token_digest}
    close_attempt(job, "handed_back" if handed_back else outcome, failure)
    if failure.fault == "user":
        end_job(job, FAILED, failure=body, **changes)
    elif job.cancel_requested_at is not None:
        end_job(job, CANCELLED, failure=body, **changes)
    elif failures >= job.max_attempts:
        end_job(job, FAILED, failure=body, **changes)
    elif job.pause_requested_at is not None:
        pause_job(job, failure=body, **changes)
    else:
        pause = timedelta(0) if blameless else _pause_after(failures)
        move_job(
            job, QUEUED, failure=body, lease_until=None, eta_seconds=None, due_at=Now() + pause, **changes
        )
        ring_later(job)
        notify(JOBS, job.pk)


def _failures_with_this(job: Job) -> int:
    """Counted from the last attempt that got far: a run of days meets more than three faults, and what fails
    again and again at one place does not get far."""
    got_far = Checkpoint.objects.filter(
        job=job, attempt=job.attempt, dropped_at=None, job__started_at__lt=Now() - LONG_ATTEMPT
    )
    return 1 if got_far.exists() else job.failures + 1


def _pause_after(failures: int) -> timedelta:
    """Growing pauses between attempts: RETRY_SECONDS, then six times as long each time."""
    return timedelta(seconds=settings.RETRY_SECONDS * 6 ** min(failures - 1, 4))


def pause_job(job: Job, **changes: Any) -> None:
    """Put a locked job aside until somebody resumes it."""
    move_job(job, PAUSED, lease_until=None, eta_seconds=None, pause_requested_at=None, **changes)
    _record_end(job, PAUSED, None)


def end_job(job: Job, state: str, *, failure: dict[str, Any] | None, **changes: Any) -> None:
    """End a locked job, in the trail too."""
    move_job(job, state, failure=failure, finished_at=Now(), lease_until=None, eta_seconds=None, **changes)
    _record_end(job, state, failure)


def _record_end(job: Job, state: str, failure: dict[str, Any] | None) -> None:
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


def move_job(job: Job, state: str, **changes: Any) -> None:
    """`transition` of a row that is locked, so that it cannot fail for another's doing."""
    if not transition(job, TRANSITIONS, state, **changes):
        raise RuntimeError(f"job {job.pk} cannot go from {job.state} to {state}")


def lease_end() -> Any:
    """When a lease ends that is granted or renewed now, a database expression."""
    return Now() + timedelta(seconds=settings.LEASE_SECONDS)


def _held(job_id: str, token: str) -> QuerySet[Job]:
    """The running job, where its current attempt holds this token; otherwise nothing."""
    return Job.objects.filter(pk=job_id, state=RUNNING, token_digest=digest_of(token))


def _stale(job_id: str) -> Refused:
    return Refused("stale_token", f"Job {job_id} no longer belongs to this attempt.")


def _lost(job: Job) -> JobFailure:
    tries = f"failure {_failures_with_this(job)} of {job.max_attempts}"
    return JobFailure(
        fault="platform",
        code="worker_lost",
        message=(
            f"The worker {job.worker} stopped reporting (step {job.step}, {tries}). "
            "If this happens again, ask the operator to look at that machine's memory and log."
        )[:2000],
    )


_STOPPED = JobFailure(
    fault="platform",
    code="worker_stopped",
    message="The worker was stopped while it worked on this job. Another one takes it over.",
)
