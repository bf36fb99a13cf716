"""How much data a workspace may store: its quota, what counts against it, and the refusal beyond it.

Every file counts once, however many versions read it. Uploads under way count in full, so that two of them
cannot both take the last of the room.
"""

from dataclasses import dataclass

from django.conf import settings
from django.db import transaction
from django.db.models import Sum
from django.template.defaultfilters import filesizeformat

from stillhouse.accounts.models import Workspace
from stillhouse.audit.actions import record
from stillhouse.core.errors import UserError
from stillhouse.datasets.models import DatasetVersion, Upload


@dataclass(frozen=True)
class Room:
    """Bytes of a workspace's datasets."""

    used: int
    limit: int

    @property
    def left(self) -> int:
        return max(0, self.limit - self.used)


def room_of(workspace: Workspace) -> Room:
    """What the workspace stores and may store."""
    versions = DatasetVersion.objects.filter(dataset__workspace=workspace, purged_at=None)
    originals = versions.exclude(sha256="").values_list("sha256", "size")
    rows = versions.exclude(rows_sha256="").values_list("rows_sha256", "rows_size")
    # A union drops what stands there twice: the same digest is the same file.
    files = sum(size for _, size in originals.union(rows))
    waiting = versions.filter(sha256="").aggregate(total=Sum("size"))["total"] or 0
    under_way = Upload.objects.filter(dataset__workspace=workspace, finished_at=None)
    uploads = under_way.aggregate(total=Sum("size"))["total"] or 0
    limit = workspace.data_quota_bytes
    return Room(files + waiting + uploads, settings.DATA_QUOTA_BYTES if limit is None else limit)


def check_room(workspace: Workspace, more: int) -> None:
    """Raises UserError `quota_reached` where `more` bytes do not fit beside what is there."""
    room = room_of(workspace)
    if more <= room.left:
        return
    raise UserError(
        "quota_reached",
        f"{_words(more)} do not fit: {workspace.name} stores {_words(room.used)} of the {_words(room.limit)} "
        "it may.",
        place="file",
        next_step="Cancel uploads nobody finishes, or ask the operator for a larger quota.",
        status=413,
    )


@transaction.atomic
def set_quota(workspace: Workspace, limit: int | None) -> None:
    """Let the workspace store so many bytes; None: as many as DATA_QUOTA_BYTES says. What is there stays."""
    if limit is not None and limit < 0:
        raise UserError("bad_quota", f"{limit} is no number of bytes.", "bytes", "Give 0 or more.")
    Workspace.objects.filter(pk=workspace.pk).update(data_quota_bytes=limit)
    record(
        workspace=workspace,
        by=None,
        action="workspace.quota_set",
        object_id=workspace.pk,
        object_name=workspace.name,
        details={"bytes": limit},
    )


def _words(count: int) -> str:
    return filesizeformat(count).replace("\xa0", " ")
