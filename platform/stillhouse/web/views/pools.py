"""Pools: the engines that serve, what each of them holds, and taking one out of service.

Pools belong to the site; versions belong to a workspace. So everybody sees the engines, and of the versions
only those of the own workspace, the others as a number.
"""

from dataclasses import dataclass

from django.contrib import messages
from django.core.paginator import Page, Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme

from stillhouse.accounts.models import Membership
from stillhouse.adapters.queries import get_version
from stillhouse.publishing.models import Alias
from stillhouse.publishing.queries import aliases_by_version
from stillhouse.serving import actions
from stillhouse.serving.models import Holding, Placement, Pool, Replica
from stillhouse.serving.queries import get_replica, is_silent, placements_in, pools_with_holdings
from stillhouse.web.access import in_workspace, is_htmx

FEW, PAGE, MOST_SHOWN = 8, 50, 16
"""Versions of a pool shown at first and on a page of all, and those on a replica's card."""


@dataclass(frozen=True)
class ReplicaRow:
    replica: Replica
    state: str
    """A word for the page."""
    tone: str
    silent: bool
    holdings: list[Holding]
    """Of the own workspace; what is not ready first."""
    others: int
    """Versions of other workspaces it holds."""

    @property
    def shown(self) -> list[Holding]:
        """As many as a card has room for, and whatever is not ready."""
        unready = sum(holding.state != Holding.READY for holding in self.holdings)
        return self.holdings[: max(MOST_SHOWN, unready)]

    @property
    def dialog(self) -> str:
        """Id of its dialog, unique on the page."""
        return f"drain-{self.replica.pk}"


@dataclass(frozen=True)
class PlacedRow:
    """A version of the own workspace that belongs on a pool."""

    placement: Placement
    aliases: list[Alias]
    """That it answers for now."""
    state: str
    """`ready`, `loading` or `failed` on some replica; empty: it is cold."""
    ready: int
    """Replicas that have it ready."""


@dataclass(frozen=True)
class PoolRow:
    pool: Pool
    replicas: list[ReplicaRow]
    total: int
    """Versions of the own workspace on this pool."""
    whole: bool
    """All of them may be looked through; else a few of the latest are shown."""
    page: Page[Placement]
    placed: list[PlacedRow]


@in_workspace("GET")
def pools(request: HttpRequest, by: Membership) -> HttpResponse:
    """`versions` names a pool, of which all versions are listed then, and `q` a part of their names."""
    whole, text = request.GET.get("versions", ""), request.GET.get("q", "").replace("\0", "").strip()
    aliases, number = aliases_by_version(by), request.GET.get("page")
    rows = [
        _pool(pool, by, aliases, whole=pool.pk == whole, text=text, number=number)
        for pool in pools_with_holdings()
    ]
    rows = [row for row in rows if row.whole] or rows
    query = request.GET.copy()
    query.pop("page", None)
    context = {
        "rows": rows,
        "unsettled": any(map(_is_unsettled, rows)),
        "versions": next((row.pool.pk for row in rows if row.whole), ""),
        "q": text,
        "query": query.urlencode(),
        "address": request.get_full_path(),
    }
    return render(request, "pools/_pools.html" if is_htmx(request) else "pools/page.html", context)


@in_workspace("POST")
def replica_drain(request: HttpRequest, by: Membership, pool: str, replica: str) -> HttpResponse:
    item = get_replica(pool, replica)
    actions.drain_replica(by=by, replica=item, draining=True)
    messages.success(request, f"{item.name} gets no new requests. What it is answering ends as usual.")
    return redirect("pools", by.workspace.slug)


@in_workspace("POST")
def replica_undrain(request: HttpRequest, by: Membership, pool: str, replica: str) -> HttpResponse:
    item = get_replica(pool, replica)
    actions.drain_replica(by=by, replica=item, draining=False)
    messages.success(request, f"{item.name} takes requests again.")
    return redirect("pools", by.workspace.slug)


@in_workspace("POST")
def replica_forget(request: HttpRequest, by: Membership, pool: str, replica: str) -> HttpResponse:
    item = get_replica(pool, replica)
    actions.forget_replica(by=by, replica=item)
    messages.success(request, f"{item.name} is off the list.")
    return redirect("pools", by.workspace.slug)


@in_workspace("POST")
def version_pin(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    version = get_version(by, id)
    pinned = request.POST.get("pinned") == "1"
    actions.pin_version(by=by, version=version, pinned=pinned)
    now = "stays loaded, used or not" if pinned else "is loaded while it is used"
    messages.success(request, f"{version} {now}.")
    back, home = request.POST.get("next", ""), reverse("pools", args=[by.workspace.slug])
    is_ours = url_has_allowed_host_and_scheme(back, None) and back.split("?")[0] == home
    return redirect(back if is_ours else home)


def _is_unsettled(row: PoolRow) -> bool:
    """Whether something is about to change: the page then looks again by itself."""
    holdings = [holding for item in row.replicas for holding in item.holdings]
    return (
        not row.replicas
        or any(item.tone == "failed" for item in row.replicas)
        or any(holding.state == Holding.LOADING for holding in holdings)
    )


def _replica(replica: Replica, by: Membership) -> ReplicaRow:
    silent = is_silent(replica)
    held = sorted(
        replica.holdings.all(), key=lambda one: (one.state == Holding.READY, one.version.serving_name)
    )
    ours = [one for one in held if one.version.adapter.workspace_id == by.workspace_id]
    state, tone = _state(replica, silent)
    return ReplicaRow(replica, state, tone, silent, ours, len(held) - len(ours))


def _state(replica: Replica, silent: bool) -> tuple[str, str]:
    """The one thing to know about it, and the colour's name."""
    if silent:
        return "not reporting", "failed"
    if replica.error:
        return "not usable", "failed"
    if not replica.healthy:
        return "engine away", "failed"
    if replica.draining:
        return "stopping" if replica.draining == "agent" else "drained", "waiting"
    return "serving", "serving"


def _pool(
    pool: Pool, by: Membership, aliases: dict[str, list[Alias]], *, whole: bool, text: str, number: str | None
) -> PoolRow:
    replicas = [_replica(replica, by) for replica in pool.replicas.all()]
    placements = placements_in(by, pool)
    shown = placements.filter(version__serving_name__icontains=text) if whole and text else placements
    page = Paginator(shown, PAGE if whole else FEW).get_page(number if whole else 1)
    placed = [_placed(one, aliases.get(one.version_id, []), replicas) for one in page]
    return PoolRow(pool, replicas, placements.count(), whole, page, placed)


def _placed(placement: Placement, aliases: list[Alias], replicas: list[ReplicaRow]) -> PlacedRow:
    states = [
        holding.state
        for item in replicas
        for holding in item.holdings
        if holding.version_id == placement.version_id
    ]
    worst = next((state for state in (Holding.FAILED, Holding.LOADING, Holding.READY) if state in states), "")
    return PlacedRow(placement, aliases, worst, states.count(Holding.READY))
