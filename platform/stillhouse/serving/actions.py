"""Writes of serving: pools, which version belongs where, and what the agents report.

Pools belong to the site. They are added from the machine; placements follow from registering and retiring
versions.
"""

from django.db import transaction

from stillhouse.adapters.models import AdapterVersion
from stillhouse.audit.actions import record
from stillhouse.catalog.models import BaseModel
from stillhouse.core.errors import Conflict, UserError
from stillhouse.core.notify import GATEWAY, notify
from stillhouse.serving.models import Placement, Pool
from stillhouse.serving.queries import get_pool
from stillhouse.serving.report import record_report
from stillhouse.serving.wanted import SERVABLE, wanted_by
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
        _audit(version, "version.placed", [placement.pool_id for placement in new])
    return [placement for placement, _ in placed]


@transaction.atomic
def unplace_version(*, version: AdapterVersion) -> None:
    """Want the version nowhere any more; agents unload it."""
    placements = Placement.objects.filter(version=version)
    pools = list(placements.values_list("pool_id", flat=True))
    if not pools:
        return
    placements.delete()
    notify(GATEWAY)
    _audit(version, "version.unplaced", pools)


def sync_pool(*, pool_name: str, report: PoolReport) -> PoolWanted:
    """Write down what a replica holds, and answer with what it should hold; raises NotFound for an unknown
    pool."""
    pool = get_pool(pool_name)
    replica = record_report(pool, report)
    return wanted_by(replica)


def _audit(version: AdapterVersion, action: str, pools: list[str]) -> None:
    record(
        workspace=version.adapter.workspace,
        by=None,
        action=action,
        object_id=version.id,
        object_name=str(version),
        details={"pools": pools},
    )
