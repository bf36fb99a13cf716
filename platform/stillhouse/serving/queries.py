"""Reads of serving: what is loaded where, and whether a request for it would be answered."""

from datetime import timedelta

from django.db.models import QuerySet
from django.utils import timezone

from stillhouse.adapters.models import AdapterVersion
from stillhouse.core.errors import NotFound
from stillhouse.serving.models import Holding, Pool, Replica

SILENCE = timedelta(seconds=15)
"""A replica whose agent has not reported for this long is not counted on."""


def pools() -> QuerySet[Pool]:
    """All pools with their replicas. Pools belong to the site."""
    return Pool.objects.select_related("base").prefetch_related("replicas").order_by("name")


def get_pool(name: str) -> Pool:
    """The pool of that name; raises NotFound."""
    pool = Pool.objects.select_related("base").filter(pk=name).first()
    if pool is None:
        raise NotFound("pool")
    return pool


def replicas_ready(version: AdapterVersion) -> QuerySet[Replica]:
    """The healthy, reporting replicas of pools the version is placed on that hold it, proven and warm."""
    return Replica.objects.filter(
        holdings__version=version,
        holdings__state=Holding.READY,
        pool__placements__version=version,
        healthy=True,
        reported_at__gt=timezone.now() - SILENCE,
    ).distinct()


def is_ready(version: AdapterVersion) -> bool:
    """Whether an app's next request for the version would be answered by a replica that holds it."""
    return replicas_ready(version).exists()


def holdings(version: AdapterVersion) -> QuerySet[Holding]:
    """What every replica says of the version, errors and proofs included."""
    return Holding.objects.filter(version=version).select_related("replica__pool").order_by("replica__name")
