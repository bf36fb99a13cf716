"""What happened to a run, as OpenAI's events: its attempts in words, its losses as metrics."""

from datetime import datetime
from typing import Any

from stillhouse.jobs.models import FAILED, Metric
from stillhouse.jobs.timeline import timeline
from stillhouse.openai_api.shapes import seconds, version_of
from stillhouse.training.models import TrainingRun


def events_of(run: TrainingRun) -> list[dict[str, Any]]:
    """Newest first. An event keeps its id when others follow."""
    found = [*_messages(run), *_metrics(run)]
    # Sorting keeps what happened at one moment in its order, so the whole is turned round afterwards.
    return [event for _, event in sorted(found, key=lambda each: each[0])][::-1]


def _messages(run: TrainingRun) -> list[tuple[datetime, dict[str, Any]]]:
    found = [_message(run, "created", run.created_at, "The run is queued.")]
    for entry in timeline(run.job):
        name = f"attempt-{entry.number}"
        found.append(
            _message(run, f"{name}-began", entry.started_at, f"Attempt {entry.number} on {entry.worker}.")
        )
        if entry.ended_at:
            level = "error" if entry.outcome == FAILED else "info"
            text = f"Attempt {entry.number}: {entry.text}. {entry.message}".strip()
            found.append(_message(run, f"{name}-ended", entry.ended_at, text, level))
    version = version_of(run)
    if version is not None:
        text = f"{version.serving_name} is made. It answers apps once a lead has approved and published it."
        found.append(_message(run, "version", version.created_at, text))
    return found


def _metrics(run: TrainingRun) -> list[tuple[datetime, dict[str, Any]]]:
    points = Metric.objects.filter(job=run.job).order_by("step").values_list("step", "at", "values")
    total = run.job.total_steps
    return [
        (
            at,
            {
                **_event(
                    run,
                    f"step-{step}",
                    at,
                    "info",
                    f"Step {step}/{total}: training loss={values['loss']:.4f}",
                ),
                "type": "metrics",
                "data": {"step": step, "total_steps": total, "train_loss": values["loss"]},
            },
        )
        for step, at, values in points
        if values.get("loss") is not None
    ]


def _message(
    run: TrainingRun, name: str, at: datetime, text: str, level: str = "info"
) -> tuple[datetime, dict[str, Any]]:
    return at, {**_event(run, name, at, level, text), "type": "message", "data": None}


def _event(run: TrainingRun, name: str, at: datetime, level: str, text: str) -> dict[str, Any]:
    return {
        "id": f"ftevent-{run.pk}-{name}",
        "object": "fine_tuning.job.event",
        "created_at": seconds(at),
        "level": level,
        "message": text,
    }
