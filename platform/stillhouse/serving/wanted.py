"""What a replica should hold: pinned versions always, then those used or asked for lately, with URLs to fetch
their files from."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import F
from django.db.models.functions import Greatest
from django.utils import timezone

from stillhouse.adapters.actions import MANIFEST
from stillhouse.adapters.models import APPROVED, CANDIDATE
from stillhouse.core import blobs
from stillhouse.serving.models import Holding, Placement, Replica
from workers.contract import PoolWanted, WantedFile, WantedVersion

SERVABLE = (CANDIDATE, APPROVED)
IDLE_SECONDS, LOADING_SECONDS = 1.0, 0.5
ROLLBACK_WINDOW = timedelta(days=1)
"""A version that no alias answers with any more stays loaded this long, so that a rollback is instant."""
WARM = timedelta(days=7)
"""A version that nobody used, asked for or made within this time is cold: loaded on its next request."""


@dataclass(frozen=True)
class Chosen:
    """A version that a replica should hold now."""

    version_id: str
    name: str
    digest: str
    files: Sequence[dict[str, object]]
    manifest_size: int
    required: bool
    """Pinned or published: the replica is not ready to join its pool without it."""
    active_at: datetime
    """Last made, placed, used or asked for."""


def chosen_for(replica: Replica, published: Collection[str]) -> list[Chosen]:
    """What the replica should hold, the most important first; nothing where its engine runs other weights.

    Pinned by a person or `published`: always, even beyond the engine's memory (it then reads them from disk
    when they take turns). The rest by last use, as many as fit.
    """
    if replica.error:
        return []
    rows = _placed(replica, published)
    required = [row for row in rows if row.required]
    warm_since = timezone.now() - WARM
    others = [row for row in rows if not row.required and row.active_at >= warm_since]
    room = max(0, replica.capacity - len(required)) if replica.capacity else len(others)
    return [*required, *others[:room]]


def as_wanted(replica: Replica, chosen: Sequence[Chosen]) -> PoolWanted:
    """The answer to a replica's report."""
    states = dict(replica.holdings.values_list("version_id", "state"))
    loading = any(states.get(item.version_id, Holding.LOADING) == Holding.LOADING for item in chosen)
    return PoolWanted(
        wanted=[_wanted(item) for item in chosen],
        poll_seconds=LOADING_SECONDS if loading else IDLE_SECONDS,
    )


def _placed(replica: Replica, published: Collection[str]) -> list[Chosen]:
    """Placements of versions that may serve and that were trained on the very weights the pool serves, the
    last active first.

    Only the files of the manifest are read: a report comes every second, and manifests are large.
    """
    rows = Placement.objects.filter(
        pool=replica.pool_id,
        version__state__in=SERVABLE,
        version__manifest_body__base__digest=replica.pool.base.digest,
    ).annotate(active_at=Greatest("created_at", "version__created_at", "used_at", "wanted_at"))
    return [
        Chosen(version_id, name, digest, files, size, pinned or version_id in published, active_at)
        for version_id, name, digest, files, size, pinned, active_at in rows.order_by(
            "-active_at", "-version__created_at"
        ).values_list(
            "version_id",
            "version__serving_name",
            "version__digest",
            F("version__manifest_body__files"),
            "version__manifest_size",
            "pinned",
            "active_at",
        )
    ]


def _wanted(item: Chosen) -> WantedVersion:
    manifest = {"name": MANIFEST, "size": item.manifest_size, "sha256": item.digest}
    return WantedVersion(
        name=item.name,
        digest=item.digest,
        required=item.required,
        files=[
            WantedFile.model_validate({**file, "url": blobs.get_url(str(file["sha256"]))})
            for file in [*item.files, manifest]
        ],
    )
