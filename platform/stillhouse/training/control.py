"""What people ask of a run: pause, resume, try again. (Starting and cancelling are in `training.actions`.)"""

from django.db import transaction

from stillhouse.accounts.access import require
from stillhouse.accounts.models import Membership
from stillhouse.core.errors import NotFound
from stillhouse.datasets.queries import check_not_erased
from stillhouse.jobs.control import request_pause, resume_job, retry_job, set_priority
from stillhouse.jobs.shares import check_quota
from stillhouse.training.models import TrainingRun


def pause_run(*, by: Membership, run: TrainingRun) -> None:
    """Have the run write a checkpoint and give its worker back; a waiting one is put aside at once."""
    _check(by, run)
    require(by, "run.cancel")
    request_pause(by=by, job=run.job)


def resume_run(*, by: Membership, run: TrainingRun) -> None:
    """Queue a paused run again; any worker of the class goes on from its checkpoint."""
    _check(by, run)
    require(by, "run.start")
    _check_data(run)
    resume_job(by=by, job=run.job)


@transaction.atomic
def retry_run(*, by: Membership, run: TrainingRun, from_start: bool = False) -> None:
    """A new attempt of a run that failed or was cancelled, from its last checkpoint or from the start.

    Raises Conflict for any other run, `erased` for one on erased data, and UserError `quota_used_up`.
    """
    _check(by, run)
    require(by, "run.start")
    _check_data(run)
    check_quota(run.workspace, run.job.queue)
    retry_job(by=by, job=run.job, from_start=from_start)


def prioritise_run(*, by: Membership, run: TrainingRun, priority: int) -> None:
    """Move a run before (or behind) the others of its workspace; a lead's decision."""
    _check(by, run)
    require(by, "version.decide")
    set_priority(by=by, job=run.job, priority=priority)


def _check_data(run: TrainingRun) -> None:
    for version in filter(None, (run.data, run.eval_data)):
        check_not_erased(version)


def _check(by: Membership, run: TrainingRun) -> None:
    if run.workspace_id != by.workspace_id:
        raise NotFound("training run")
