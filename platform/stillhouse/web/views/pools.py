"""Pools: the engines that serve, what each of them holds, and taking one out of service.

Pools belong to the site; versions belong to a workspace. So everybody sees the engines, and of the versions
only those of the own workspace, the others as a number.
"""

from dataclasses import dataclass, field

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render

from stillhouse.accounts.models import Membership
from stillhouse.adapters.queries import get_version
from stillhouse.publishing.queries import aliases_of
from stillhouse.serving import actions
from stillhouse.serving.models import Holding, Placement, Pool, Replica
from stillhouse.serving.queries import get_replica, is_silent, placements_in, pools_with_holdings
from stillhouse.web.access import in_workspace, is_htmx


@dataclass(frozen=True)
class ReplicaRow:
    replica: Replica
    state: str
    """A word for the page."""
    tone: str
    silent: bool
    holdings: list[Holding]
    """Of the own workspace."""
    others: int
    """Versions of other workspaces it holds."""

    @property
    def dialog(self) -> str:
        """Id of its dialog, unique on the page."""
        return f"drain-{self.replica.pk}"


@dataclass(frozen=True)
class PoolRow:
    pool: Pool
    replicas: list[ReplicaRow]
    placements: list[Placement] = field(default_factory=list)
    """Of the own workspace, the most recently made first."""


@in_workspace("GET")
def pools(request: HttpRequest, by: Membership) -> HttpResponse:
    rows = [
        PoolRow(pool, [_replica(replica, by) for replica in pool.replicas.all()], _placements(by, pool))
        for pool in pools_with_holdings()
    ]
    template = "pools/_pools.html" if is_htmx(request) else "pools/page.html"
    return render(request, template, {"rows": rows, "unsettled": any(map(_is_unsettled, rows))})


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
    return redirect("pools", by.workspace.slug)


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
    held = sorted(replica.holdings.all(), key=lambda one: one.version.serving_name)
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


def _placements(by: Membership, pool: Pool) -> list[Placement]:
    rows = list(placements_in(by, pool)[:200])
    for row in rows:
        row.aliases = aliases_of(row.version)  # type: ignore[attr-defined]
    return rows
