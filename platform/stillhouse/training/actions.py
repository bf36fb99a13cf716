"""Writes of training: starting and cancelling runs."""

from collections.abc import Mapping

from django.db import transaction

from stillhouse.accounts.access import require
from stillhouse.accounts.models import Membership
from stillhouse.audit.actions import record
from stillhouse.catalog.models import BaseModel
from stillhouse.catalog.queries import get_base
from stillhouse.core.errors import Conflict, NotFound, UserError
from stillhouse.datasets.models import DatasetReport, DatasetVersion
from stillhouse.datasets.queries import check_not_erased
from stillhouse.jobs.actions import queue_job
from stillhouse.jobs.control import request_cancel
from stillhouse.jobs.models import Kind
from stillhouse.jobs.shares import check_quota
from stillhouse.training.estimates import estimate_run, refuse_what_cannot_fit
from stillhouse.training.fleet import QUEUE
from stillhouse.training.models import TrainingRun
from stillhouse.training.names import check_model_name
from stillhouse.training.presets import Overrides, resolve_spec


def start_run(
    *,
    by: Membership,
    adapter_name: str,
    base: BaseModel | str,
    data: DatasetVersion,
    eval_data: DatasetVersion | None = None,
    preset: str = "balanced",
    overrides: Overrides | None = None,
    metadata: Mapping[str, str] | None = None,
) -> TrainingRun:
    """Freeze every setting into a TrainSpec, and write run, job and doorbell in one transaction.

    Raises NotFound for another workspace's data, and UserError `unknown_base`, `base_not_available`,
    `not_checked_yet`, `nothing_trainable`, `bad_name`, `does_not_fit` or what `resolve_spec` finds.
    """
    for version in filter(None, (data, eval_data)):
        _in_workspace(by, version)
    require(by, "run.start")
    check_model_name(adapter_name, place="adapter_name")
    pinned = _available(base)
    _check_data(data, eval_data)
    check_quota(by.workspace, QUEUE)
    spec = resolve_spec(base=pinned, data=data, eval_data=eval_data, preset=preset, overrides=overrides or {})
    refuse_what_cannot_fit(estimate_run(base=pinned, data=data, eval_data=eval_data, spec=spec))
    run = TrainingRun(
        workspace=by.workspace,
        adapter_name=adapter_name,
        base=pinned,
        data=data,
        eval_data=eval_data,
        preset=preset,
        spec_body=spec.model_dump(mode="json"),
        started_by=by.user,
        metadata=dict(metadata or {}),
    )
    with transaction.atomic():
        run.job = queue_job(
            workspace=by.workspace,
            kind=Kind.TRAIN,
            queue=QUEUE,
            subject=run.id,
            spec=run.spec_body,
            by=by.user,
        )
        run.save(force_insert=True)
        record(
            workspace=by.workspace,
            by=by.user,
            action="run.started",
            object_id=run.id,
            object_name=adapter_name,
            details={"base": pinned.id, "data": data.id, "data_sha256": data.sha256, "preset": preset},
        )
    return run


@transaction.atomic
def cancel_run(*, by: Membership, run: TrainingRun) -> None:
    """Ask the run's worker to stop; a run that nobody claimed yet is cancelled at once."""
    if run.workspace_id != by.workspace_id:
        raise NotFound("training run")
    require(by, "run.cancel")
    run.job.refresh_from_db()
    if run.job.ended:
        raise Conflict("run_ended", f"The run has ended already ({run.job.state}).")
    request_cancel(by=by, job=run.job)


def _in_workspace(by: Membership, version: DatasetVersion) -> None:
    if version.dataset.workspace_id != by.workspace_id:
        raise NotFound("dataset version")


def _available(base: BaseModel | str) -> BaseModel:
    pinned = get_base(base if isinstance(base, str) else base.id)
    if not pinned.available:
        raise UserError(
            "base_not_available",
            f"The weights of {pinned.name} are not on this site yet.",
            "base",
            "Ask the operator to add them (manage.py base add), or choose a base that is available.",
        )
    return pinned


def _check_data(data: DatasetVersion, eval_data: DatasetVersion | None) -> None:
    _trainable(data, "data")
    if eval_data is None:
        return
    _trainable(eval_data, "eval_data")
    if eval_data.sha256 == data.sha256:
        raise UserError(
            "same_data",
            "The evaluation data is the training data: it would grade what was learned by heart.",
            "eval_data",
            "Choose other evaluation data, or none: then a share of the data is held out.",
        )


def _trainable(version: DatasetVersion, place: str) -> None:
    check_not_erased(version)
    report = DatasetReport.objects.filter(version=version).first()
    if report is None:
        raise UserError(
            "not_checked_yet",
            f"{version} has not been checked yet, or its check failed.",
            place,
            "Wait for the report on the dataset's page.",
        )
    if not report.valid:
        raise UserError(
            "nothing_trainable",
            f"None of the {report.rows} rows of {version} can be used.",
            place,
            "Look at the report, mend the file and upload it again.",
        )
