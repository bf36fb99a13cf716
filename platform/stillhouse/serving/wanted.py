"""What a replica should hold: every placed version that may serve, with URLs to fetch its files from."""

from stillhouse.adapters.actions import MANIFEST
from stillhouse.adapters.models import APPROVED, CANDIDATE, AdapterVersion
from stillhouse.core import blobs
from stillhouse.serving.models import Holding, Replica
from workers.contract import PoolWanted, WantedFile, WantedVersion

SERVABLE = (CANDIDATE, APPROVED)
IDLE_SECONDS, LOADING_SECONDS = 1.0, 0.5


def wanted_by(replica: Replica) -> PoolWanted:
    """The answer to a replica's report. Nothing is wanted of an engine that runs other weights than the
    pool's base."""
    versions = [] if replica.error else _placed(replica)
    states = dict(replica.holdings.values_list("version_id", "state"))
    loading = any(states.get(version.id, Holding.LOADING) == Holding.LOADING for version in versions)
    return PoolWanted(
        wanted=[_wanted(version) for version in versions],
        poll_seconds=LOADING_SECONDS if loading else IDLE_SECONDS,
    )


def _placed(replica: Replica) -> list[AdapterVersion]:
    """Placed versions that may serve and that were trained on the very weights the pool serves."""
    return list(
        AdapterVersion.objects.filter(
            placements__pool=replica.pool_id,
            state__in=SERVABLE,
            manifest_body__base__digest=replica.pool.base.digest,
        ).order_by("created_at")
    )


def _wanted(version: AdapterVersion) -> WantedVersion:
    files = [(file.name, file.size, file.sha256) for file in version.manifest.files]
    return WantedVersion(
        name=version.serving_name,
        digest=version.digest,
        files=[
            WantedFile(name=name, url=blobs.get_url(sha256), size=size, sha256=sha256)
            for name, size, sha256 in [*files, (MANIFEST, version.manifest_size, version.digest)]
        ],
    )
