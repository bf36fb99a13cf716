"""A change to a dataset version, tried before it is made: its rows counted, the first shown side by side."""

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from pydantic import ValidationError

from stillhouse.accounts.access import require
from stillhouse.accounts.models import Membership
from stillhouse.core.errors import Conflict, NotFound, UserError
from stillhouse.datasets.deriving import check_usable, derive_version
from stillhouse.datasets.models import Trial
from stillhouse.datasets.queries import get_version
from stillhouse.datasets.trials import start_trial
from stillhouse.jobs.models import SUCCEEDED
from stillhouse.training.queries import newest_held_out
from stillhouse.web.access import in_workspace, is_htmx
from stillhouse.web.views.dataset_changes import KIND_WORDS, STEP_WORDS, asked_operations
from workers.contract import Append, DeriveSpec, DropContaining, DropOverlap

_NEEDS_ANOTHER = (Append, DropOverlap)


@in_workspace("POST")
def dataset_try(request: HttpRequest, by: Membership, id: str, number: int) -> HttpResponse:
    """Have a worker count what the change of the form would do."""
    version = get_version(by, id, number)
    require(by, "dataset.upload")
    check_usable([version])
    operations = asked_operations(request.POST)
    if len(operations) != 1 or isinstance(operations[0], _NEEDS_ANOTHER):
        raise UserError(
            "not_tried", "This change is made, not tried.", "change", "Make it: the old version stays."
        )
    trial = start_trial(by=by, version=version, operations=operations)
    return redirect("dataset_trial", by.workspace.slug, trial.pk)


@in_workspace("GET", "POST")
def dataset_trial(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    """GET: what was counted so far. POST: make the version, by the very operations that were tried."""
    trial = _get_trial(by, id)
    spec = _spec_of(trial)
    if request.method == "POST":
        if trial.job.state != SUCCEEDED:
            raise Conflict("not_tried_yet", "The change has not been tried to the end.")
        made = derive_version(
            by=by, version=trial.version, operations=spec.operations, held_out=newest_held_out(by)
        )
        messages.success(request, f"{made} is being made. {trial.version} stays as it is.")
        return redirect("dataset_version", by.workspace.slug, made.dataset_id, made.number)
    context: dict[str, Any] = {
        "trial": trial,
        "version": trial.version,
        "job": trial.job,
        "words": STEP_WORDS.get(spec.operations[0].op, spec.operations[0].op),
        "done": trial.body["operations"][0] if trial.body else None,
    }
    if context["done"]:
        found = context["done"]["found"]
        context["places_found"] = [(KIND_WORDS.get(kind, kind.capitalize()), n) for kind, n in found.items()]
        context["gone"] = context["done"]["rows_in"] - context["done"]["rows_out"]
    return render(request, "datasets/_trial.html" if is_htmx(request) else "datasets/trial.html", context)


def _spec_of(trial: Trial) -> DeriveSpec:
    """What was tried; NotFound once an erasure has taken away what somebody typed for it."""
    try:
        return DeriveSpec.model_validate(trial.job.spec)
    except ValidationError as error:
        raise NotFound("trial") from error


def _get_trial(by: Membership, trial_id: str) -> Trial:
    """A trial of the workspace. The search of an erasure is one too, and is not shown here."""
    mine = Trial.objects.filter(version__dataset__workspace=by.workspace, original=False, pk=trial_id)
    trial = mine.select_related("version__dataset__workspace", "job").first()
    erases = DropContaining.model_fields["op"].default
    if trial is None or any(each["op"] == erases for each in trial.job.spec["operations"]):
        raise NotFound("trial")
    return trial
