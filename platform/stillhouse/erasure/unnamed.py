"""Objects that no row names: what brought them to the store was refused, or died. The keeper removes them."""

from datetime import timedelta

from django.db.models import Q

from stillhouse.adapters.models import AdapterVersion
from stillhouse.core import blobs
from stillhouse.core.pending import expired, settling
from stillhouse.datasets.purging import is_read
from stillhouse.evaluations.models import EvaluationResult

KEPT_FOR = timedelta(hours=6)
"""Far longer than a finish may take, and as long as a URL lives (`blobs.URL_LIFE`)."""


def remove_unnamed(*, older_than: timedelta = KEPT_FOR) -> int:
    """Remove every object that was brought so long ago and that nothing names; returns how many."""
    removed = 0
    for sha256 in expired(older_than):
        with settling(sha256, older_than) as alone:
            if alone and not is_named(sha256):
                blobs.remove(sha256)
                removed += 1
    return removed


def remove_object(sha256: str, *, of: AdapterVersion | None = None) -> None:
    """Remove an object unless a row names it, other than `of`, or somebody is just bringing it."""
    blobs.remove_unless(lambda each: is_named(each, but=of), sha256)


def is_named(sha256: str, *, but: AdapterVersion | None = None) -> bool:
    """Whether a row of any workspace, other than `but`, says that there is an object of this digest."""
    adapters = AdapterVersion.objects.exclude(quarantines__files_removed_at__isnull=False)
    adapters = adapters.exclude(pk=but.pk if but else "")
    return (
        is_read(sha256)
        or adapters.filter(Q(digest=sha256) | Q(manifest_body__files__contains=[{"sha256": sha256}])).exists()
        or EvaluationResult.objects.filter(rows_sha256=sha256, evaluation__data__purged_at=None).exists()
    )
