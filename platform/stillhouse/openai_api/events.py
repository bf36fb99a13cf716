"""What happened to a run, as OpenAI's events: its attempts in words, its losses as metrics."""

from datetime import datetime
from typing import Any

from django.db.models import Q

from stillhouse.core.errors import NotFound
from stillhouse.jobs.models import FAILED, Metric
from stillhouse.jobs.timeline import timeline
from stillhouse.openai_api.shapes import seconds, version_of
from stillhouse.training.models import TrainingRun

Place = tuple[datetime, int, int]
"""When it happened; of one moment the words come first, then the metrics; of one kind, its number."""
Event = tuple[Place, dict[str, Any]]
WORDS, METRICS = 0, 1


def events_of(run: TrainingRun, *, after: str | None = None, most: int) -> list[dict[str, Any]]:
    """The newest `most`, newest first, of those that are older than the event `after`.

    An event keeps its id when others follow. Raises NotFound for an `after` that is none of the run's.
    """
    told = _messages(run)
    before = _place_of(run, told, after) if after else None
    found = [event for event in told if before is None or event[0] < before]
    found += _metrics(run, before, most)
    found.sort(key=lambda event: event[0], reverse=True)
    return [event for _, event in found[:most]]


def _place_of(run: TrainingRun, told: list[Event], id: str) -> Place:
    for place, event in told:
        if event["id"] == id:
            return place
    step = id.removeprefix(_id(run, "step-"))
    if step.isascii() and step.isdigit() and len(step) < 10:
        point = Metric.objects.filter(job=run.job, step=int(step)).first()
        if point is not None:
            return point.at, METRICS, point.step
    raise NotFound("event")


def _messages(run: TrainingRun) -> list[Event]:
    said = [("created", run.created_at, "The run is queued.", "info")]
    for entry in timeline(run.job):
        name = f"attempt-{entry.number}"
        said.append((f"{name}-began", entry.started_at, f"Attempt {entry.number} on {entry.worker}.", "info"))
        if entry.ended_at:
            level = "error" if entry.outcome == FAILED else "info"
            text = f"Attempt {entry.number}: {entry.text}. {entry.message}".strip()
            said.append((f"{name}-ended", entry.ended_at, text, level))
    version = version_of(run)
    if version is not None:
        text = f"{version.serving_name} is made. It answers apps once a lead has approved and published it."
        said.append(("version", version.created_at, text, "info"))
    return [
        (
            (at, WORDS, number),
            {**_event(run, name, at, level, text), "type": "message", "data": None},
        )
        for number, (name, at, text, level) in enumerate(said)
    ]


def _metrics(run: TrainingRun, before: Place | None, most: int) -> list[Event]:
    """The newest `most` points of the curve that lie before a place."""
    points = Metric.objects.filter(job=run.job, values__has_key="loss")
    if before is not None:
        at, kind, step = before
        older = Q(at__lt=at)
        points = points.filter(older | Q(at=at, step__lt=step) if kind == METRICS else older)
    return [
        ((point.at, METRICS, point.step), _point(run, point))
        for point in points.order_by("-at", "-step")[:most]
    ]


def _point(run: TrainingRun, point: Metric) -> dict[str, Any]:
    total, loss = run.job.total_steps, point.values["loss"]
    text = f"Step {point.step}/{total}: training loss={loss:.4f}"
    return {
        **_event(run, f"step-{point.step}", point.at, "info", text),
        "type": "metrics",
        "data": {"step": point.step, "total_steps": total, "train_loss": loss},
    }


def _event(run: TrainingRun, name: str, at: datetime, level: str, text: str) -> dict[str, Any]:
    return {
        "id": _id(run, name),
        "object": "fine_tuning.job.event",
        "created_at": seconds(at),
        "level": level,
        "message": text,
    }


def _id(run: TrainingRun, name: str) -> str:
    return f"ftevent-{run.pk}-{name}"
