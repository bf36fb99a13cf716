"""Exchanges of an alias that are kept: looked through, corrected, made into rows of a dataset."""

from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render

from stillhouse.accounts.models import Membership
from stillhouse.datasets.queries import datasets, get_dataset, get_version, trainable, version_by_id
from stillhouse.datasets.traffic import (
    MOST_PICKS,
    Pick,
    append_to,
    exchanges,
    make_from_traffic,
    taken_into,
)
from stillhouse.publishing.models import Alias, Keeping
from stillhouse.publishing.queries import get_alias
from stillhouse.training.queries import newest_held_out
from stillhouse.usage.kept import kept_of, rated
from stillhouse.usage.models import KeptExchange
from stillhouse.web.access import in_workspace

PAGE = 20
EDITABLE = 20_000
"""Characters of an answer or reasoning that a form takes; a longer one is taken as it is."""
OFFERED = 200
"""Datasets that a form lists."""
FILTERS = {
    "": "All",
    "rated": "With feedback",
    "down": "Bad",
    "up": "Good",
    "corrected": "Corrected by the app",
}


@in_workspace("GET", "POST")
def alias_traffic(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    """GET: what is kept of the alias. POST: the ticked exchanges become a version of a dataset."""
    alias = get_alias(by, id)
    if request.method == "POST":
        return _make(request, by, alias)
    shown = request.GET.get("show", "")
    page = Paginator(_kept(by, alias, shown), PAGE).get_page(request.GET.get("page"))
    listed = exchanges(by, page)
    taken = taken_into(by, [each.id for each in listed])
    context: dict[str, Any] = {
        "alias": alias,
        "keeping": Keeping.objects.filter(alias=alias).first(),
        "rows": [{"exchange": each, "taken": taken.get(each.id)} for each in listed],
        "page": page,
        "query": f"show={shown}" if shown in FILTERS and shown else "",
        "filters": FILTERS,
        "count": min(page.paginator.count, MOST_PICKS),
        "shown": shown,
        "editable": EDITABLE,
        "datasets": datasets(by)[:OFFERED],
    }
    return render(request, "aliases/traffic.html", context)


def _kept(by: Membership, alias: Alias, shown: str) -> QuerySet[KeptExchange]:
    if shown in ("up", "down"):
        return rated(by, alias.name, rating=shown)
    if shown in ("rated", "corrected"):
        return rated(by, alias.name, corrected=shown == "corrected")
    return kept_of(by, alias.name)


def _make(request: HttpRequest, by: Membership, alias: Alias) -> HttpResponse:
    form = request.POST
    into, every = form.get("into", ""), bool(form.get("all"))
    shown = _kept(by, alias, form.get("show", "")).values_list("pk", flat=True)
    version = make_from_traffic(
        by=by,
        alias=alias.name,
        picks=_picks(form, list(shown[:MOST_PICKS]) if every else form.getlist("take")),
        usable_only=every,
        dataset=get_dataset(by, into) if into else None,
        name=form.get("name", ""),
        held_out=newest_held_out(by),
    )
    messages.success(request, f"{version} holds what you chose. It is being checked now.")
    return redirect("dataset_version", by.workspace.slug, version.dataset_id, version.number)


def _picks(form: QueryDict, requests: list[str]) -> list[Pick]:
    return [
        Pick(request, form.get(f"answer-{request}"), form.get(f"reasoning-{request}")) for request in requests
    ]


@in_workspace("POST")
def traffic_append(request: HttpRequest, by: Membership, id: str, number: int) -> HttpResponse:
    """Add the rows of a version that was made from traffic to another version's, as a new one."""
    version = get_version(by, id, number)
    target = version_by_id(by, request.POST.get("target", ""))
    made = append_to(by=by, version=version, target=target, held_out=newest_held_out(by))
    messages.success(request, f"{made} is being made.")
    return redirect("dataset_version", by.workspace.slug, made.dataset_id, made.number)


def append_targets(by: Membership, version_id: str, dataset_id: str) -> list[Any]:
    """The versions that rows may be added to: those of the same dataset first, the newest of each first."""
    found = list(trainable(by).exclude(pk=version_id)[:50])
    return sorted(found, key=lambda one: one.dataset_id != dataset_id)
