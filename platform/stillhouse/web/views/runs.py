"""Training runs: the list, the form that starts one, and the page that watches it."""

from collections.abc import Mapping
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render

from stillhouse.accounts.models import Membership
from stillhouse.catalog.queries import bases
from stillhouse.core.errors import NotFound, UserError
from stillhouse.datasets.models import DatasetVersion
from stillhouse.datasets.queries import trainable
from stillhouse.datasets.queries import versions as data_versions
from stillhouse.training import actions
from stillhouse.training.models import Preset, TrainingRun
from stillhouse.training.presets import SETTINGS, group_columns
from stillhouse.training.queries import runs as runs_of
from stillhouse.web.access import in_workspace, is_htmx, wants_json
from stillhouse.web.views.run_estimate import (
    HELD_OUT,
    Choices,
    choices,
    estimate_context,
    overrides,
    resolved,
)
from workers.contract import TrainSpec

PRESETS: Mapping[Preset, str] = {
    Preset.QUICK: "A first look: part of the data, once. Good for finding out whether it teaches anything.",
    Preset.BALANCED: "The one to start with. Learns all the data with sizes that suit most tasks.",
    Preset.THOROUGH: "Several times through the data with a wider adapter. For when balanced falls short.",
}

CHOICES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "think_policy": (
        ("traces", "Reasoning and answer"),
        ("answer_only", "The answer; the base keeps its own reasoning"),
        ("no_think", "The answer, without any reasoning"),
    ),
    "schedule": (("cosine", "Cosine"), ("linear", "Linear"), ("constant", "Constant")),
    "optimizer": (("adamw", "AdamW"), ("paged_adamw_8bit", "Paged AdamW, 8 bit")),
    "quantization": (("nf4", "NF4 (4 bit)"), ("none", "None (16 bit)")),
}


@in_workspace("GET")
def runs(request: HttpRequest, by: Membership) -> HttpResponse:
    page = Paginator(runs_of(by).select_related("version"), 30).get_page(request.GET.get("page"))
    return render(request, "runs/page.html", {"page": page})


@in_workspace("GET", "POST")
def run_new(request: HttpRequest, by: Membership) -> HttpResponse:
    if request.method == "GET" and is_htmx(request):
        return render(request, "runs/_settings.html", _settings(by, request.GET))
    if request.method == "GET":
        return render(request, "runs/new.html", _form(by, request.GET))
    try:
        run = _start(by, request.POST)
    except UserError as error:
        if wants_json(request) or is_htmx(request) or error.status in (403, 404):
            raise
        context = {**_form(by, request.POST), "error": error}
        return render(request, "runs/new.html", context, status=error.status)
    messages.success(request, "The run is queued. You may close this page: it goes on without you.")
    return redirect("run", by.workspace.slug, run.pk)


def _start(by: Membership, form: QueryDict) -> TrainingRun:
    eval_data = form.get("eval_data", "")
    return actions.start_run(
        by=by,
        adapter_name=form.get("adapter_name", "").strip(),
        base=form.get("base", ""),
        data=_chosen(by, form.get("data", ""), "data"),
        eval_data=_chosen(by, eval_data, "eval_data") if eval_data else None,
        preset=form.get("preset", Preset.BALANCED),
        overrides=overrides(form),
    )


def _chosen(by: Membership, version_id: str, place: str) -> DatasetVersion:
    if not version_id:
        raise UserError(
            "data_missing", "No data is chosen.", place, "Choose a dataset version, or upload one first."
        )
    version = data_versions(by).filter(pk=version_id).first()
    if version is None:
        raise NotFound("dataset version")
    return version


def _form(by: Membership, given: QueryDict) -> dict[str, Any]:
    """The form as it stands: `given` is the query of a link, or what was sent and refused."""
    usable = list(trainable(by)[:200])
    known = list(bases())
    available = [base for base in known if base.available]
    data = next((v for v in usable if v.pk == given.get("data")), usable[0] if usable else None)
    base = next((b for b in available if b.pk == given.get("base")), available[0] if available else None)
    return {
        "data_versions": usable,
        "available_bases": available,
        "other_bases": [base for base in known if not base.available],
        "presets": [(preset, PRESETS[preset]) for preset in Preset],
        "given": given,
        "chosen_data": data,
        "chosen_base": base,
        "chosen_preset": given.get("preset", Preset.BALANCED),
        "adapter_names": runs_of(by)
        .order_by("adapter_name")
        .values_list("adapter_name", flat=True)
        .distinct(),
        **_resolved(resolved(base, data, _eval_data(usable, given), given), given),
    }


def _settings(by: Membership, given: QueryDict) -> dict[str, Any]:
    return {"given": given, "live": True, **_resolved(choices(by, given), given)}


def _eval_data(usable: list[DatasetVersion], given: QueryDict) -> DatasetVersion | None:
    return next((version for version in usable if version.pk == given.get("eval_data")), None)


def _resolved(chosen: Choices, given: QueryDict) -> dict[str, Any]:
    """Each advanced setting with what the preset gives it, what the person typed, and what comes of it."""
    plain: TrainSpec | None = None
    if chosen.base and chosen.data:
        plain = resolved(chosen.base, chosen.data, chosen.eval_data, _preset_alone(given)).spec
    return {
        "settings": _fields(plain, given),
        "trouble": chosen.trouble,
        "resolved": chosen.spec,
        "group_columns": group_columns(chosen.data) if chosen.data else [],
        **estimate_context(chosen),
    }


def _preset_alone(given: QueryDict) -> QueryDict:
    """The form as if nothing had been set by hand."""
    alone = QueryDict(mutable=True)
    alone["preset"] = given.get("preset", Preset.BALANCED)
    return alone


def _fields(spec: TrainSpec | None, given: QueryDict) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "label": label,
            "default": getattr(spec, name) if spec else "",
            "value": given.get(name, ""),
            "choices": CHOICES.get(name, ()),
        }
        for name, label in SETTINGS.items()
        if name not in HELD_OUT
    ]
