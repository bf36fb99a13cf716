"""Objects that no row names yet.

Bytes reach their content address before the row that names them is written, and that row may never come: the
result is refused, or the process dies. So a PendingObject is written first, `blobs` sees to that, and goes
when the naming row is there. What is left after a while, the keeper removes, with its object unless somebody
names it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from django.db import transaction
from django.db.models.functions import Now

from stillhouse.core.locks import held, lock_in_transaction
from stillhouse.core.models import PendingObject

REMOVED_WITHIN = timedelta(minutes=5)
"""The longest that the removal of one object may take."""


@dataclass(frozen=True)
class Holder:
    """Who brings objects: an upload or an attempt at a job, and its workspace."""

    id: str
    workspace: str

    def expects(self, sha256: str) -> None:
        """Say so before looking whether the object is there: from now on it is not removed under us."""
        with transaction.atomic():
            lock_in_transaction(_lock(sha256))
            PendingObject.objects.update_or_create(
                sha256=sha256, holder=self.id, defaults={"workspace": self.workspace, "since": Now()}
            )

    def brought(self, is_named: Callable[[str], bool] = lambda _: True) -> None:
        """Forget what rows name by now; in the transaction that writes them."""
        for pending in PendingObject.objects.filter(holder=self.id):
            if is_named(pending.sha256):
                pending.delete()


@contextmanager
def undisturbed(sha256: str, *, by: Holder | None = None) -> Iterator[bool]:
    """Hold off everybody who would bring this object; whether nobody else than `by` is about to."""
    with held(_lock(sha256), at_most=REMOVED_WITHIN):
        yield not PendingObject.objects.filter(sha256=sha256).exclude(holder=by.id if by else "").exists()


def expired(older_than: timedelta, most: int = 1000) -> list[str]:
    """Digests that somebody said to bring so long ago."""
    old = PendingObject.objects.filter(since__lt=Now() - older_than)
    return list(old.order_by("since").values_list("sha256", flat=True)[:most])


@contextmanager
def settling(sha256: str, older_than: timedelta) -> Iterator[bool]:
    """Hold off everybody who would bring this object; whether nobody has been at it since. Then they forget
    it: what an interrupted block has not done is done the next time."""
    with held(_lock(sha256), at_most=REMOVED_WITHIN):
        pending, limit = PendingObject.objects.filter(sha256=sha256), Now() - older_than
        yield not pending.filter(since__gte=limit).exists()
        pending.filter(since__lt=limit).delete()


def _lock(sha256: str) -> str:
    return f"object:{sha256}"
