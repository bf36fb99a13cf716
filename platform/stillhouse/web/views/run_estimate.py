"""What a run would take: the panel beside the form that starts one, and the request to count its tokens."""

from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import render

from stillhouse.accounts.models import Membership
from stillhouse.catalog.models import BaseModel
from stillhouse.catalog.queries import bases
from stillhouse.core.errors import UserError
from stillhouse.datasets.models import DatasetVersion
from stillhouse.datasets.queries import trainable
from stillhouse.training.estimates import RunEstimate, estimate_run
from stillhouse.training.measuring import request_count
from stillhouse.training.models import Preset
from stillhouse.training.presets import SETTINGS, resolve_spec
from stillhouse.web.access import in_workspace
from workers.contract import TrainSpec


@dataclass(frozen=True)
class Choices:
    """The form's choices that decide what a run takes, as far as they are made and of this workspace."""

    base: BaseModel | None
    data: DatasetVersion | None
    eval_data: DatasetVersion | None
    spec: TrainSpec | None
    """None while something is missing or wrong."""
    trouble: UserError | None = None


@in_workspace("GET", "POST")
def run_estimate(request: HttpRequest, by: Membership) -> HttpResponse:
    """GET: the panel. POST: have the tokens counted if nobody has, then the panel, which looks again."""
    given = request.POST if request.method == "POST" else request.GET
    chosen = choices(by, given)
    if request.method == "POST" and chosen.base and chosen.spec:
        for version in filter(None, (chosen.data, chosen.eval_data)):
            request_count(by=by, version=version, base=chosen.base, policy=chosen.spec.think_policy)
    return render(request, "runs/_estimate.html", estimate_context(chosen))


def choices(by: Membership, given: QueryDict) -> Choices:
    """What a form says, looked up within the workspace."""
    known = trainable(by)
    base = bases().filter(pk=given.get("base", "")).first()
    data = known.filter(pk=given.get("data", "")).first()
    eval_data = known.filter(pk=given.get("eval_data", "")).first() if given.get("eval_data") else None
    return resolved(base, data, eval_data, given)


def resolved(
    base: BaseModel | None, data: DatasetVersion | None, eval_data: DatasetVersion | None, given: QueryDict
) -> Choices:
    spec: TrainSpec | None = None
    trouble: UserError | None = None
    if base and data:
        preset = given.get("preset", Preset.BALANCED)
        try:
            spec = resolve_spec(
                base=base, data=data, eval_data=eval_data, preset=preset, overrides=overrides(given)
            )
        except UserError as error:
            trouble = error
    return Choices(base, data, eval_data, spec, trouble)


HELD_OUT = ("heldout_share", "heldout_group")
"""Settings that have a place of their own in the form."""


def overrides(form: QueryDict) -> dict[str, str | int | float]:
    """What the person set by hand; an empty field leaves the setting to the preset."""
    given: dict[str, str | int | float] = {
        name: value for name in SETTINGS if (value := str(form.get(name, "")).strip())
    }
    if form.get("eval_data"):
        for name in HELD_OUT:
            given.pop(name, None)  # its field is hidden then: it was meant for the other choice
    return given


def estimate_context(chosen: Choices) -> dict[str, Any]:
    found: RunEstimate | None = None
    if chosen.base and chosen.data and chosen.spec:
        found = estimate_run(base=chosen.base, data=chosen.data, eval_data=chosen.eval_data, spec=chosen.spec)
    return {"found": found, "bar": _bar(found), "chosen": chosen}


def _bar(found: RunEstimate | None) -> dict[str, float] | None:
    """Memory as a drawing 100 wide: of the machine's whole, the range from `low` on, `width` wide."""
    if found is None or not found.machine.memory_bytes:
        return None
    estimate, whole = found.estimate, max(found.machine.memory_bytes, found.estimate.memory_high_bytes)
    low = 100 * estimate.memory_low_bytes / whole
    return {
        "low": round(low, 2),
        "width": round(max(1.5, 100 * estimate.memory_high_bytes / whole - low), 2),
    }
