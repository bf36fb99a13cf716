"""The end of a version's files: out of the store, while digests and figures stay in the database."""

from django.db.models import Q

from stillhouse.core import blobs
from stillhouse.core.pending import Holder
from stillhouse.datasets.models import DatasetVersion


def remove_files(version: DatasetVersion, *, came_back: Holder | None = None) -> None:
    """Remove the files of a purged version, except those that a version which stays reads as well, and those
    that somebody else is just bringing: the keeper sees to them. `came_back`: who has brought them again.

    Nothing happens for a version that is not purged. Safe to call again.
    """
    if version.purged_at is None:
        return
    for digest in {version.sha256, version.rows_sha256} - {""}:
        blobs.remove_unless(is_read, digest, by=came_back)
    if version.upload is not None:
        blobs.discard(version.upload.staging_key)


def is_read(digest: str) -> bool:
    """Whether a version of any workspace still has this file."""
    kept = DatasetVersion.objects.filter(purged_at=None)
    return kept.filter(Q(sha256=digest) | Q(rows_sha256=digest)).exists()
