"""Training runs: the list, the form that starts one, and the page that watches it."""

from collections.abc import Mapping
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse, JsonResponse, QueryDict
from django.shortcuts import redirect, render
from django.urls import reverse

from stillhouse.accounts.models import Membership
from stillhouse.adapters.models import AdapterVersion
from stillhouse.catalog.models import BaseModel
from stillhouse.catalog.queries import bases
from stillhouse.core.errors import NotFound, UserError
from stillhouse.datasets.models import DatasetVersion
from stillhouse.datasets.queries import trainable
from stillhouse.datasets.queries import versions as data_versions
from stillhouse.jobs.models import Metric
from stillhouse.training import actions
from stillhouse.training.models import Preset, TrainingRun
from stillhouse.training.presets import SETTINGS, estimate_steps, resolve_spec
from stillhouse.training.queries import get_run
from stillhouse.training.queries import runs as runs_of
from stillhouse.web.access import in_workspace, is_htmx, wants_json
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
        overrides=_overrides(form),
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


def _overrides(form: QueryDict) -> dict[str, str | int | float]:
    """What the person set by hand; an empty field leaves the setting to the preset."""
    given: dict[str, str | int | float] = {
        name: value for name in SETTINGS if (value := str(form.get(name, "")).strip())
    }
    if form.get("eval_data"):
        given.pop("heldout_share", None)  # its field is hidden then: it was meant for the other choice
    return given


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
        **_resolved(base, data, given),
    }


def _settings(by: Membership, given: QueryDict) -> dict[str, Any]:
    base = bases().filter(pk=given.get("base", "")).first()
    data = trainable(by).filter(pk=given.get("data", "")).first()
    return {"given": given, **_resolved(base, data, given)}


def _resolved(base: BaseModel | None, data: DatasetVersion | None, given: QueryDict) -> dict[str, Any]:
    """Each advanced setting with what the preset gives it, what the person typed, and what comes of it."""
    plain: TrainSpec | None = None
    checked: TrainSpec | None = None
    trouble: UserError | None = None
    steps: int | None = None
    if base and data:
        # Of the evaluation data only whether there is any matters here: then nothing is held back.
        eval_data = data if given.get("eval_data") else None
        preset = given.get("preset", Preset.BALANCED)
        try:
            plain = resolve_spec(base=base, data=data, eval_data=eval_data, preset=preset, overrides={})
            checked = resolve_spec(
                base=base, data=data, eval_data=eval_data, preset=preset, overrides=_overrides(given)
            )
            steps = estimate_steps(checked, data.report.valid)
        except UserError as error:
            trouble = error
    return {"settings": _fields(plain, given), "trouble": trouble, "resolved": checked, "steps": steps}


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
        if name != "heldout_share"
    ]


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
    }
    return render(request, "runs/_outcome.html" if is_htmx(request) else "runs/run.html", context)


def _frozen(spec: TrainSpec) -> list[tuple[str, str, Any]]:
    return [(name, label, getattr(spec, name)) for name, label in SETTINGS.items()]


def _run_json(item: TrainingRun, version: AdapterVersion | None) -> dict[str, Any]:
    job = item.job
    last = Metric.objects.filter(job=job, values__has_key="loss").order_by("-step").first()
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
    }


@in_workspace("POST")
def run_cancel(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    item = get_run(by, id)
    actions.cancel_run(by=by, run=item)
    messages.info(
        request, "The run is asked to stop. It ends at the next report of its worker, within seconds."
    )
    return redirect(reverse("run", args=[by.workspace.slug, item.pk]))
