"""Erasing rows: the search, what it found and what was made from it, a lead's word, and the quarantine."""

from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render

from stillhouse.accounts.models import Membership
from stillhouse.core.errors import UserError
from stillhouse.datasets.queries import datasets, get_dataset
from stillhouse.erasure.confirming import confirm_erasure, decide_quarantine, withdraw_erasure
from stillhouse.erasure.models import Erasure, Finding, Quarantine
from stillhouse.erasure.queries import erasures as erasures_of
from stillhouse.erasure.queries import findings_of, get_erasure, get_quarantine, made_from, text_of
from stillhouse.erasure.searching import start_search
from stillhouse.web.access import in_workspace, is_htmx


@in_workspace("GET", "POST")
def erasures(request: HttpRequest, by: Membership) -> HttpResponse:
    """The workspace's erasures; a POST starts a search."""
    error: UserError | None = None
    if request.method == "POST":
        given = request.POST
        try:
            made = start_search(
                by=by,
                dataset=get_dataset(by, given["dataset"]) if given.get("dataset") else None,
                text=given.get("text", ""),
                file=given.get("file", ""),
                why=given.get("why", ""),
            )
        except UserError as found:
            error = found
        else:
            return redirect("erasure", by.workspace.slug, made.pk)
    context = {
        "page": Paginator(erasures_of(by), 30).get_page(request.GET.get("page")),
        "datasets": datasets(by),
        "given": request.POST if error else {"dataset": request.GET.get("dataset", "")},
        "error": error,
    }
    return render(request, "erasures/page.html", context, status=error.status if error else 200)


@in_workspace("GET")
def erasure(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    item = get_erasure(by, id)
    found = findings_of(item)
    context: dict[str, Any] = {"erasure": item, "text": text_of(item), **_sorted(item, found)}
    holding = [each.version_id for each in found if (each.erased if item.confirmed_at else each.holds)]
    context["made"] = made_from(by, holding)
    context["quarantines"] = item.quarantines.select_related("version__adapter", "version__run", "decided_by")
    template = "erasures/_erasure.html" if is_htmx(request) else "erasures/erasure.html"
    return render(request, template, context)


@in_workspace("POST")
def erasure_confirm(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    item = get_erasure(by, id)
    confirm_erasure(
        by=by,
        erasure=item,
        remade=request.POST.getlist("remake"),
        unread=bool(request.POST.get("unread")),
    )
    messages.success(request, "The rows are being erased. What was trained on them is quarantined.")
    return redirect("erasure", by.workspace.slug, item.pk)


@in_workspace("POST")
def erasure_withdraw(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    item = get_erasure(by, id)
    withdraw_erasure(by=by, erasure=item)
    messages.info(request, "The erasure is withdrawn. Nothing was removed.")
    return redirect("erasure", by.workspace.slug, item.pk)


@in_workspace("POST")
def quarantine_decide(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    held = get_quarantine(by, id, request.POST.get("version", ""))
    decision = request.POST.get("decision", "")
    decide_quarantine(by=by, quarantine=held, decision=decision, reason=request.POST.get("reason", ""))
    words = "serves again" if decision == Quarantine.KEEP else "is retired"
    messages.success(request, f"{held.version} {words}.")
    return redirect("erasure", by.workspace.slug, id)


def _sorted(item: Erasure, found: list[Finding]) -> dict[str, Any]:
    """Findings as the page shows them, and how far the search is."""
    read = sum(each.trial.job.ended for each in found)
    holding = [each for each in found if each.erased or each.holds]
    newest: dict[str, Finding] = {}
    for each in holding:  # the newest version of a dataset comes first
        newest.setdefault(each.version.dataset_id, each)
    return {
        "read": read,
        "versions": len(found),
        "searching": read < len(found),
        "holding": holding,
        "rows": sum((each.rows or 0) + each.in_error for each in newest.values()),
        "newest": {each.version_id for each in newest.values()},
        "unread": [each for each in found if each.unread and not each.erased],
    }
