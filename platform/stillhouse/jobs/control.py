"""What people ask of a job: pause, resume, cancel, try again.

Rights are the caller's to check (`run.start`, `run.cancel`); the workspace is checked here, and the trail
says who asked. A running job changes when its worker has answered; every other one at once.
"""

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from stillhouse.accounts.models import Membership
from stillhouse.audit.actions import record
from stillhouse.core.errors import Conflict, NotFound, UserError
from stillhouse.core.notify import JOBS, notify
from stillhouse.jobs.actions import end_job, move_job, pause_job, ring_later
from stillhouse.jobs.checkpoints import drop_checkpoints
from stillhouse.jobs.models import CANCELLED, FAILED, PAUSED, QUEUED, RUNNING, Job, Metric


@transaction.atomic
def request_cancel(*, by: Membership, job: Job) -> None:
    """Cancel a waiting or paused job at once; ask the worker of a running one to stop.

    An ended job is left as it is. The last checkpoint is kept either way.
    """
    locked = _lock(by, job)
    if locked.state in (QUEUED, PAUSED):
        end_job(locked, CANCELLED, failure=None, cancel_requested_at=Now(), pause_requested_at=None)
    elif locked.state == RUNNING and locked.cancel_requested_at is None:
        Job.objects.filter(pk=locked.pk).update(cancel_requested_at=Now())
        notify(JOBS, locked.pk)
    else:
        job.refresh_from_db()
        return
    _record(by, locked, "job.cancel_requested")
    job.refresh_from_db()


@transaction.atomic
def request_pause(*, by: Membership, job: Job) -> None:
    """Put a waiting job aside at once; ask a running one for a checkpoint, then to hand back.

    Asked twice it is the same as once. Raises Conflict when the job has ended, or is being cancelled.
    """
    locked = _lock(by, job)
    if locked.ended or locked.cancel_requested_at is not None:
        raise _cannot(locked, "paused")
    if locked.state == PAUSED or locked.pause_requested_at is not None:
        job.refresh_from_db()
        return
    _record(by, locked, "job.pause_requested")
    if locked.state == QUEUED:
        pause_job(locked)
    else:
        Job.objects.filter(pk=locked.pk).update(pause_requested_at=Now())
        notify(JOBS, locked.pk)
    job.refresh_from_db()


@transaction.atomic
def resume_job(*, by: Membership, job: Job) -> None:
    """Queue a paused job again, or take back a pause that its worker has not answered yet.

    Raises Conflict for a job that is neither.
    """
    locked = _lock(by, job)
    if locked.state == RUNNING and locked.pause_requested_at is not None:
        Job.objects.filter(pk=locked.pk).update(pause_requested_at=None)
        notify(JOBS, locked.pk)
    elif locked.state == PAUSED:
        move_job(locked, QUEUED, failures=0, failure=None, due_at=None)
        ring_later(locked)
        notify(JOBS, locked.pk)
    else:
        raise _cannot(locked, "resumed")
    _record(by, locked, "job.resumed")
    job.refresh_from_db()


@transaction.atomic
def retry_job(*, by: Membership, job: Job, from_start: bool = False) -> None:
    """Queue a failed or cancelled job again: its next attempt goes on from the last checkpoint.

    `from_start` drops the checkpoints and the curve. Raises Conflict for a job that did not end so.
    """
    locked = _lock(by, job)
    if locked.state not in (FAILED, CANCELLED):
        raise _cannot(locked, "tried again")
    move_job(
        locked,
        QUEUED,
        failures=0,
        failure=None,
        due_at=None,
        finished_at=None,
        cancel_requested_at=None,
        pause_requested_at=None,
        **({"beginning": F("attempt") + 1, "step": 0, "resumed_step": 0} if from_start else {}),
    )
    if from_start:
        drop_checkpoints(locked)
        Metric.objects.filter(job=locked).delete()
    ring_later(locked)
    notify(JOBS, locked.pk)
    _record(by, locked, "job.retried", from_start=from_start)
    job.refresh_from_db()


PRIORITIES = range(-10, 11)


@transaction.atomic
def set_priority(*, by: Membership, job: Job, priority: int) -> None:
    """Move a job that has not ended before or behind the others of its workspace."""
    if priority not in PRIORITIES:
        raise UserError(
            "bad_priority", f"{priority} is no priority.", "priority", "Choose a number from -10 to 10."
        )
    locked = _lock(by, job)
    if locked.ended:
        raise _cannot(locked, "moved")
    Job.objects.filter(pk=locked.pk).update(priority=priority)
    notify(JOBS, locked.pk)
    _record(by, locked, "job.priority_set", priority=priority)
    job.refresh_from_db()


def _lock(by: Membership, job: Job) -> Job:
    locked = Job.objects.select_for_update().filter(pk=job.pk, workspace=by.workspace).first()
    if locked is None:
        raise NotFound("job")
    return locked


def _cannot(job: Job, done: str) -> Conflict:
    state = "being cancelled" if job.cancel_requested_at is not None and not job.ended else job.state
    return Conflict(f"not_{done.split()[0]}", f"The job is {state}; it cannot be {done} now.")


def _record(by: Membership, job: Job, action: str, **details: object) -> None:
    record(
        workspace=by.workspace,
        by=by.user,
        action=action,
        object_id=job.pk,
        details={"kind": job.kind, "subject": job.subject, **details},
    )
