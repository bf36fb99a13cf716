"""One training run: its page, and what people ask of it."""

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render

from stillhouse.accounts.models import Membership
from stillhouse.adapters.models import AdapterVersion
from stillhouse.core.errors import UserError
from stillhouse.jobs.checkpoints import newest_checkpoint
from stillhouse.jobs.models import Metric
from stillhouse.jobs.timeline import timeline, waiting
from stillhouse.training import control
from stillhouse.training.actions import cancel_run
from stillhouse.training.models import TrainingRun
from stillhouse.training.presets import SETTINGS
from stillhouse.training.queries import get_run
from stillhouse.web.access import in_workspace, is_htmx, wants_json
from workers.contract import TrainSpec


@in_workspace("GET")
def run(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    item = get_run(by, id)
    version = AdapterVersion.objects.filter(run=item).select_related("adapter").first()
    if wants_json(request):
        return JsonResponse(_run_json(item, version))
    context = {
        "run": item,
        "job": item.job,
        "version": version,
        "spec": item.spec,
        "settings": _frozen(item.spec),
        "noted": list(item.metadata.items()),  # a list: a template would take a name `items` for the method
        "timeline": timeline(item.job),
        "waiting": waiting(item.job),
        "checkpoint": newest_checkpoint(item.job),
    }
    return render(request, "runs/_live.html" if is_htmx(request) else "runs/run.html", context)


def _frozen(spec: TrainSpec) -> list[tuple[str, str, Any]]:
    return [(name, label, getattr(spec, name)) for name, label in SETTINGS.items()]


def _run_json(item: TrainingRun, version: AdapterVersion | None) -> dict[str, Any]:
    job = item.job
    last = Metric.objects.filter(job=job, values__has_key="loss").order_by("-step").first()
    place = waiting(job)
    checkpoint = newest_checkpoint(job)
    return {
        "id": item.pk,
        "state": job.state,
        "phase": job.phase,
        "message": job.message,
        "step": job.step,
        "total_steps": job.total_steps,
        "eta_seconds": job.eta_seconds,
        "attempt": job.attempt,
        "loss": last.values["loss"] if last else None,
        "failure": job.failure,
        "version": version.pk if version else None,
        "pausing": job.pausing,
        "cancelling": job.cancelling,
        "checkpoint_step": checkpoint.step if checkpoint else None,
        "position": place.position if place else None,
        "starts_in_seconds": place.starts_in if place else None,
        "waiting": place.text if place else "",
        "timeline": [entry.text for entry in timeline(job)],
    }


def _asked(
    request: HttpRequest, by: Membership, id: str, ask: Callable[[TrainingRun], None], said: str
) -> HttpResponse:
    """Do what was asked of a run; a program gets the run as JSON, a person the page with a sentence."""
    item = get_run(by, id)
    ask(item)
    if wants_json(request):
        return JsonResponse(_run_json(get_run(by, id), AdapterVersion.objects.filter(run=item).first()))
    messages.info(request, said)
    return redirect("run", by.workspace.slug, item.pk)


@in_workspace("POST")
def run_cancel(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    said = "The run is asked to stop. It ends at the next report of its worker, within seconds."
    return _asked(request, by, id, lambda item: cancel_run(by=by, run=item), said)


@in_workspace("POST")
def run_pause(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    said = "The run is asked to pause. It writes a checkpoint first, then its worker is free for others."
    return _asked(request, by, id, lambda item: control.pause_run(by=by, run=item), said)


@in_workspace("POST")
def run_resume(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    said = "The run goes on as soon as a worker is free."
    return _asked(request, by, id, lambda item: control.resume_run(by=by, run=item), said)


@in_workspace("POST")
def run_retry(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    from_start = request.POST.get("from", "checkpoint") == "start"
    said = "The run is queued again" + (", from the start." if from_start else ".")
    return _asked(
        request, by, id, lambda item: control.retry_run(by=by, run=item, from_start=from_start), said
    )


@in_workspace("POST")
def run_priority(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    """`priority`: a whole number, the highest of a workspace goes first."""
    get_run(by, id)
    given = request.POST.get("priority", "")
    if not given.lstrip("-").isdecimal():
        raise UserError(
            "bad_priority", f"{given[:20]!r} is no priority.", "priority", "Choose a number from -10 to 10."
        )
    return _asked(
        request,
        by,
        id,
        lambda item: control.prioritise_run(by=by, run=item, priority=int(given)),
        "The order of the waiting runs is changed.",
    )
