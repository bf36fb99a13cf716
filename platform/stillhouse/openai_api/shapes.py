"""Dataset versions and training runs as OpenAI's files and fine-tuning jobs. Times are whole seconds of the
epoch."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.utils import timezone

from stillhouse.adapters.models import AdapterVersion
from stillhouse.datasets.models import DatasetReport, DatasetVersion
from stillhouse.jobs.models import FAILED, RUNNING, SUCCEEDED, Checkpoint, Job
from stillhouse.training.models import TrainingRun
from stillhouse.training.presets import usual_learning_rate


def file_object(version: DatasetVersion) -> dict[str, Any]:
    status, details = _checked(version)
    return {
        "id": version.pk,
        "object": "file",
        "bytes": version.size,
        "created_at": seconds(version.created_at),
        "expires_at": None,
        "filename": version.filename,
        "purpose": "fine-tune",
        "status": status,
        "status_details": details,
    }


def job_object(run: TrainingRun) -> dict[str, Any]:
    job, spec, version = run.job, run.spec, version_of(run)
    hyperparameters = {
        "n_epochs": spec.epochs,
        "batch_size": spec.batch_size,
        "learning_rate_multiplier": round(spec.learning_rate / usual_learning_rate(run.base), 4),
    }
    return {
        "id": run.pk,
        "object": "fine_tuning.job",
        "created_at": seconds(run.created_at),
        "finished_at": seconds(job.finished_at) if job.ended else None,
        "estimated_finish": _estimated_finish(job),
        "model": run.base_id,
        "fine_tuned_model": version.serving_name if version else None,
        "organization_id": run.workspace.slug,
        "status": job.state,
        "training_file": run.data_id,
        "validation_file": run.eval_data_id,
        "result_files": [],
        "integrations": [],
        "metadata": run.metadata,
        "seed": spec.seed,
        "trained_tokens": version.manifest.result.trained_tokens if version else None,
        "hyperparameters": hyperparameters,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "error": _error(job),
        "stillhouse": {
            "adapter": run.adapter_name,
            "preset": run.preset,
            "version_state": version.state if version else None,
            "step": job.step,
            "total_steps": job.total_steps,
            "settings": spec.model_dump(mode="json"),
        },
    }


def checkpoint_object(run: TrainingRun, point: Checkpoint, metrics: Mapping[str, float]) -> dict[str, Any]:
    """`metrics`: the figures of its step. There is no model to name: a checkpoint is never served."""
    return {
        "id": f"ftckpt-{point.pk}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": seconds(point.created_at),
        "fine_tuned_model_checkpoint": "",
        "fine_tuning_job_id": run.pk,
        "metrics": {
            "step": point.step,
            "train_loss": metrics.get("loss"),
            "full_valid_loss": metrics.get("heldout_loss"),
        },
        "step_number": point.step,
    }


def version_of(run: TrainingRun) -> AdapterVersion | None:
    """What the run made."""
    return getattr(run, "version", None)


def seconds(moment: datetime | None) -> int | None:
    return int(moment.timestamp()) if moment else None


def _checked(version: DatasetVersion) -> tuple[str, str | None]:
    """(status, why it cannot be used)."""
    if version.erased_at is not None:
        return "error", "Rows of it were erased: nothing is made from it any more."
    if not version.job.ended:
        return "uploaded", None
    if version.job.state != SUCCEEDED:
        return "error", str((version.job.failure or {}).get("message") or "Its check did not end well.")
    report: DatasetReport = version.report
    if not report.valid:
        return "error", f"None of its {report.rows} rows can be used. The dataset's page says why."
    return "processed", None


def _estimated_finish(job: Job) -> int | None:
    if job.state != RUNNING or job.eta_seconds is None:
        return None
    return int(timezone.now().timestamp() + job.eta_seconds)


def _error(job: Job) -> dict[str, Any] | None:
    if job.state != FAILED or not job.failure:
        return None
    return {"code": job.failure["code"], "message": job.failure["message"], "param": None}
