"""Adapters and their versions: where one comes from, how well it answers, where it is loaded, who agreed."""

from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.utils import timezone

from stillhouse.accounts.access import may
from stillhouse.accounts.models import Membership
from stillhouse.adapters.models import APPROVED, CANDIDATE, AdapterVersion
from stillhouse.adapters.queries import get_version, lineage
from stillhouse.adapters.queries import versions as versions_of
from stillhouse.approvals.queries import decision_of, own_work, request_of
from stillhouse.erasure.queries import quarantines_of
from stillhouse.evaluations.actions import request_evaluation
from stillhouse.evaluations.models import Evaluation, EvaluationResult
from stillhouse.evaluations.queries import latest_evaluation, latest_result, row_counts, rows_page
from stillhouse.publishing.models import Publication
from stillhouse.publishing.queries import aliases as aliases_in
from stillhouse.publishing.queries import aliases_of
from stillhouse.serving.queries import SILENCE, holdings, is_ready
from stillhouse.web.access import in_workspace, is_htmx, wants_json
from workers.contract import ServingProof

ROWS_A_PAGE = 10
ROW_FILTERS = (
    ("all", "All"),
    ("improved", "Improved"),
    ("regressed", "Regressed"),
    ("both_wrong", "Both wrong"),
)


@in_workspace("GET")
def adapters(request: HttpRequest, by: Membership) -> HttpResponse:
    grouped: dict[str, list[AdapterVersion]] = {}
    for version in versions_of(by).order_by("adapter__name", "-number")[:500]:
        grouped.setdefault(version.adapter.name, []).append(version)
    return render(request, "versions/adapters.html", {"adapters": grouped})


@in_workspace("GET")
def version(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    item = get_version(by, id)
    evaluation = latest_evaluation(item)
    result = EvaluationResult.objects.filter(evaluation=evaluation).first() if evaluation else None
    if wants_json(request):
        return JsonResponse(_version_json(item, evaluation, result))
    rows = _rows(request, by, evaluation) if result and evaluation else {}
    if is_htmx(request) and "part" not in request.GET:
        return render(request, "versions/_rows.html", {"version": item, **rows})
    context = {
        "version": item,
        "lineage": lineage(item),
        "manifest": item.manifest,
        "evaluation": evaluation,
        "result": result,
        "comparison": _comparison(result) if result else [],
        "replicas": _replicas(item),
        "ready": is_ready(item),
        **_approval(by, item),
        **rows,
    }
    if not is_htmx(request):
        return render(request, "versions/version.html", context)
    if request.GET["part"] == "serving":
        return render(request, "versions/_serving.html", context)
    response = render(request, "versions/_evaluation.html", context)
    if evaluation and evaluation.job.ended:  # the answers and the form to ask for approval appear now
        response["HX-Refresh"] = "true"
    return response


def _rows(request: HttpRequest, by: Membership, evaluation: Evaluation) -> dict[str, Any]:
    show = request.GET.get("show", "all")
    number = request.GET.get("page", "1")
    page = rows_page(
        by, evaluation, show=show, page=int(number) if number.isdecimal() else 1, size=ROWS_A_PAGE
    )
    counts = row_counts(evaluation)
    filters = [(name, label, counts[name]) for name, label in ROW_FILTERS]
    return {"page": page, "show": show, "filters": filters}


@dataclass(frozen=True)
class Measure:
    """One line of the comparison: the base's number against the adapter's, each also as a share."""

    label: str
    explanation: str
    base: str
    adapter: str
    base_share: float
    adapter_share: float


def _comparison(result: EvaluationResult) -> list[Measure]:
    summary = result.summary
    rows, base, adapter = summary.rows, summary.base, summary.adapter
    measures = [
        Measure(
            "Exactly right",
            "Answers that match the expected one completely.",
            f"{base.exact} of {rows}",
            f"{adapter.exact} of {rows}",
            base.exact / rows if rows else 0,
            adapter.exact / rows if rows else 0,
        )
    ]
    if base.json_fields is not None and adapter.json_fields is not None:
        measures.append(
            Measure(
                "Fields right",
                "Where the answer is structured: the share of its fields with the right value.",
                f"{100 * base.json_fields:.0f} %",
                f"{100 * adapter.json_fields:.0f} %",
                base.json_fields,
                adapter.json_fields,
            )
        )
    base_think, adapter_think = base.think.get("valid", 0), adapter.think.get("valid", 0)
    measures.append(
        Measure(
            "Reasons before answering",
            "Answers with a complete reasoning part before them.",
            f"{base_think} of {rows}",
            f"{adapter_think} of {rows}",
            base_think / rows if rows else 0,
            adapter_think / rows if rows else 0,
        )
    )
    return measures


def _replicas(item: AdapterVersion) -> list[dict[str, Any]]:
    return [
        {
            "holding": holding,
            "proof": ServingProof.model_validate(holding.proof) if holding.proof else None,
            "silent": not holding.replica.healthy or holding.replica.reported_at < timezone.now() - SILENCE,
        }
        for holding in holdings(item)
    ]


def _approval(by: Membership, item: AdapterVersion) -> dict[str, Any]:
    """What is decided, and what this member may do about it."""
    request, decision = request_of(item), decision_of(item)
    return {
        "approval": request,
        "decision": decision,
        "own_work": own_work(by, item, request),
        "may_decide": item.state == CANDIDATE
        and latest_result(item) is not None
        and may(by, "version.decide")
        and not own_work(by, item, request),
        "may_ask": item.state == CANDIDATE and request is None,
        "may_publish": item.state == APPROVED and may(by, "alias.publish"),
        "aliases": aliases_of(item),
        "quarantines": quarantines_of(item),
        "alias_names": [alias.name for alias in aliases_in(by)],
        "publications": Publication.objects.filter(version=item)
        .select_related("alias", "created_by")
        .order_by("-created_at"),
    }


def _version_json(
    item: AdapterVersion, evaluation: Evaluation | None, result: EvaluationResult | None
) -> dict[str, Any]:
    request, decision = request_of(item), decision_of(item)
    return {
        "id": item.pk,
        "serving_name": item.serving_name,
        "digest": item.digest,
        "state": item.state,
        "ready": is_ready(item),
        "evaluation": evaluation
        and {
            "state": evaluation.job.state,
            "failure": evaluation.job.failure,
            "rows": result.summary.rows if result else None,
            "base_exact": result.summary.base.exact if result else None,
            "adapter_exact": result.summary.adapter.exact if result else None,
        },
        "approval": decision.verdict if decision else "asked" if request else "none",
        "aliases": [alias.name for alias in aliases_of(item)],
    }


@in_workspace("POST")
def evaluate_again(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    item = get_version(by, id)
    request_evaluation(by=by, version=item)
    messages.info(request, "The evaluation is queued again.")
    return redirect("version", by.workspace.slug, item.pk)
