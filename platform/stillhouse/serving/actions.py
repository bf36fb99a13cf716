"""Writes of serving: pools, which version belongs where, and what the agents report.

Pools belong to the site. They are added from the machine; placements follow from registering and retiring
versions.
"""

from collections.abc import Collection

from django.db import transaction

from stillhouse.accounts.access import require
from stillhouse.accounts.models import Membership, User
from stillhouse.adapters.models import AdapterVersion
from stillhouse.audit.actions import record
from stillhouse.catalog.models import BaseModel
from stillhouse.core.errors import Conflict, NotFound, UserError
from stillhouse.core.notify import GATEWAY, POOLS, notify
from stillhouse.serving.models import Placement, Pool, Replica
from stillhouse.serving.queries import get_pool, is_silent
from stillhouse.serving.report import AGENT, OPERATOR, record_report
from stillhouse.serving.use import note_use
from stillhouse.serving.wanted import SERVABLE, as_wanted
from stillhouse.training.names import check_slug
from workers.contract import PoolReport, PoolWanted


@transaction.atomic
def add_pool(*, name: str, base: BaseModel) -> Pool:
    """Make a pool for a base; the existing one when it is the same. Candidates and approved versions are
    placed on it."""
    check_slug(name, place="name")
    if not base.available:
        raise UserError(
            "base_not_available",
            f"The weights of {base.name} are not on this site yet.",
            "base",
            f"Add them first: manage.py base add {base.id}",
        )
    pool, made = Pool.objects.get_or_create(name=name, defaults={"base": base})
    if pool.base_id != base.id:
        raise Conflict("pool_exists", f"The pool {name} serves {pool.base_id}.", "Choose another name.")
    if made:
        live = AdapterVersion.objects.filter(run__base=base, state__in=SERVABLE)
        Placement.objects.bulk_create(
            [Placement(pool=pool, version=version) for version in live], ignore_conflicts=True
        )
        notify(GATEWAY)
    return pool


@transaction.atomic
def place_version(*, version: AdapterVersion) -> list[Placement]:
    """Ask for the version on every pool of its base; no pool, no placement. Agents come for it by
    themselves."""
    pools = Pool.objects.filter(base_id=version.run.base_id).order_by("name")
    placed = [Placement.objects.get_or_create(pool=pool, version=version) for pool in pools]
    new = [placement for placement, made in placed if made]
    if new:
        notify(GATEWAY)
        names = [placement.pool_id for placement in new]
        _ring(names)
        _audit(version, "version.placed", names)
    return [placement for placement, _ in placed]


@transaction.atomic
def unplace_version(*, version: AdapterVersion) -> None:
    """Want the version nowhere any more; agents unload it."""
    pools = _pools_of(version)
    if not pools:
        return
    Placement.objects.filter(version=version).delete()
    notify(GATEWAY)
    _ring(pools)
    _audit(version, "version.unplaced", pools)


def sync_pool(*, pool_name: str, report: PoolReport, published: Collection[str] = ()) -> PoolWanted:
    """Write down what a replica holds, and answer with what it should hold; raises NotFound for an unknown
    pool. `published`: ids of the versions that apps are answered with, which stay loaded whatever happens."""
    pool = get_pool(pool_name)
    note_use(pool)
    return as_wanted(*record_report(pool, report, published))


@transaction.atomic
def pin_version(*, by: Membership, version: AdapterVersion, pinned: bool) -> None:
    """Keep the version loaded on every pool of its base, used or not; or let use decide again.

    Raises NotFound for another workspace's version, UserError `not_allowed` or `not_servable`.
    """
    if version.adapter.workspace_id != by.workspace_id:
        raise NotFound("adapter version")
    require(by, "pool.manage")
    rows = Placement.objects.select_for_update().filter(version=version)
    if pinned and not (version.state in SERVABLE and rows.exists()):
        raise UserError(
            "not_servable",
            f"{version} is {version.state}, and on no pool.",
            "version",
            "Pin a candidate or an approved version whose base has a pool.",
            status=409,
        )
    if rows.exclude(pinned=pinned).update(pinned=pinned):
        pools = _pools_of(version)
        _ring(pools)
        _audit(version, "version.pinned" if pinned else "version.unpinned", pools, by.user)


@transaction.atomic
def drain_replica(*, by: Membership, replica: Replica, draining: bool) -> None:
    """Send the replica no new requests, or send them again.

    What it is answering ends as usual, and what it holds stays loaded. Replicas serve every workspace of the
    site, so this is for administrators. Raises UserError `not_allowed`, or `agent_stops` for one that is
    stopping by itself.
    """
    require(by, "replica.manage")
    locked = Replica.objects.select_for_update().get(pk=replica.pk)
    if locked.draining == AGENT:
        raise UserError(
            "agent_stops",
            f"{locked.name} is being stopped: its agent drains it already.",
            "replica",
            "It takes requests again once it was started again.",
            status=409,
        )
    if (locked.draining == OPERATOR) == draining:
        return
    locked.draining = OPERATOR if draining else ""
    locked.save(update_fields=["draining"])
    notify(GATEWAY)
    record(
        workspace=by.workspace,
        by=by.user,
        action="replica.drained" if draining else "replica.undrained",
        object_id=f"{locked.pool_id}/{locked.name}",
        object_name=locked.name,
        details={"pool": locked.pool_id},
    )


@transaction.atomic
def forget_replica(*, by: Membership, replica: Replica) -> None:
    """Take a replica that is gone off the page. One that still reports comes back with its next report.

    Raises UserError `not_allowed`, or `still_reporting`.
    """
    require(by, "replica.manage")
    if not is_silent(replica):
        raise UserError(
            "still_reporting",
            f"{replica.name} reports every second or two.",
            "replica",
            "Stop its agent first, or drain it.",
            status=409,
        )
    record(
        workspace=by.workspace,
        by=by.user,
        action="replica.forgotten",
        object_id=f"{replica.pool_id}/{replica.name}",
        object_name=replica.name,
        details={"pool": replica.pool_id},
    )
    replica.delete()
    notify(GATEWAY)


def _ring(pools: Collection[str]) -> None:
    """Wake the pools' agents: what they should hold has changed."""
    for pool in pools:
        notify(POOLS, pool)


def _pools_of(version: AdapterVersion) -> list[str]:
    return list(Placement.objects.filter(version=version).order_by("pool").values_list("pool_id", flat=True))


def _audit(version: AdapterVersion, action: str, pools: list[str], by: User | None = None) -> None:
    record(
        workspace=version.adapter.workspace,
        by=by,
        action=action,
        object_id=version.id,
        object_name=str(version),
        details={"pools": pools},
    )
