"""Reads of serving: what is loaded where, and whether a request for it would be answered."""

from datetime import timedelta

from django.db.models import Prefetch, QuerySet
from django.utils import timezone

from stillhouse.accounts.models import Membership
from stillhouse.adapters.models import AdapterVersion
from stillhouse.core.errors import NotFound
from stillhouse.serving.models import Holding, Placement, Pool, Replica

SILENCE = timedelta(seconds=15)
"""A replica whose agent has not reported for this long is not counted on."""


def pools() -> QuerySet[Pool]:
    """All pools with their replicas. Pools belong to the site."""
    return Pool.objects.select_related("base").prefetch_related("replicas").order_by("name")


def pools_with_holdings() -> QuerySet[Pool]:
    """All pools, with everything their replicas hold."""
    held = Holding.objects.select_related("version__adapter")
    replicas = Replica.objects.order_by("name").prefetch_related(Prefetch("holdings", held))
    return (
        Pool.objects.select_related("base").prefetch_related(Prefetch("replicas", replicas)).order_by("name")
    )


def placements_in(by: Membership, pool: Pool) -> QuerySet[Placement]:
    """The workspace's versions that belong on the pool, the newest first."""
    rows = Placement.objects.filter(pool=pool, version__adapter__workspace=by.workspace)
    return rows.select_related("version__adapter").order_by("-version__created_at")


def get_replica(pool: str, name: str) -> Replica:
    """One replica; raises NotFound. Replicas belong to the site, not to a workspace."""
    replica = Replica.objects.filter(pool=pool, name=name).first()
    if replica is None:
        raise NotFound("replica")
    return replica


def get_pool(name: str) -> Pool:
    """The pool of that name; raises NotFound."""
    pool = Pool.objects.select_related("base").filter(pk=name).first()
    if pool is None:
        raise NotFound("pool")
    return pool


def replicas_ready(version: AdapterVersion) -> QuerySet[Replica]:
    """The healthy, reporting replicas that take requests and hold the version, proven and warm, of pools it
    is placed on."""
    return Replica.objects.filter(
        holdings__version=version,
        holdings__state=Holding.READY,
        pool__placements__version=version,
        healthy=True,
        draining="",
        reported_at__gt=timezone.now() - SILENCE,
    ).distinct()


def is_silent(replica: Replica) -> bool:
    """Whether its agent has not reported for so long that nobody counts on it."""
    return replica.reported_at < timezone.now() - SILENCE


def is_ready(version: AdapterVersion) -> bool:
    """Whether an app's next request for the version would be answered by a replica that holds it."""
    return replicas_ready(version).exists()


def may_load(version: AdapterVersion) -> bool:
    """Whether a replica that takes requests would load the version when asked, and has not failed at it."""
    replicas = Replica.objects.filter(
        pool__placements__version=version,
        healthy=True,
        draining="",
        reported_at__gt=timezone.now() - SILENCE,
    )
    return replicas.exclude(holdings__version=version, holdings__state=Holding.FAILED).exists()


def holdings(version: AdapterVersion) -> QuerySet[Holding]:
    """What every replica says of the version, errors and proofs included."""
    return Holding.objects.filter(version=version).select_related("replica__pool").order_by("replica__name")
