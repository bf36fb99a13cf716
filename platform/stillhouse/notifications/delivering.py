"""Deliveries that are due, and the pauses between attempts."""

import logging
import threading
from datetime import datetime, timedelta

from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from stillhouse.core.errors import UserError
from stillhouse.notifications.models import Delivery, Notice
from stillhouse.notifications.sending import NotDelivered, send

log = logging.getLogger(__name__)

PAUSES = tuple(
    timedelta(seconds=seconds) for seconds in (5, 60, 300, 1800, 2 * 3600, 5 * 3600, 10 * 3600, 24 * 3600)
)
"""After the first failed attempt, after the second, …; after the last one it is given up."""
KEPT_FOR = timedelta(days=30)
_CLAIM = timedelta(minutes=2)
"""Longer than an attempt takes: nobody else tries it meanwhile, and a keeper that dies loses nothing."""
_AT_ONCE = threading.BoundedSemaphore(4)
"""A receiver that answers a byte at a time holds up one of these, and not the others' messages."""


def deliver_in_background() -> int:
    """Try what is due in a thread: a slow receiver must not hold up the keeper, who does this."""
    if _AT_ONCE.acquire(blocking=False):
        threading.Thread(target=_deliver_and_release, name="deliveries", daemon=True).start()
    return 0


def deliver_due() -> int:
    """Try what is due, oldest first, each once; returns how many got there."""
    until, delivered = timezone.now(), 0
    while (delivery := _claim(until)) is not None:
        delivered += _try(delivery)
    return delivered


def forget_old_notices() -> int:
    """Remove notices of more than a month ago; returns how many."""
    return Notice.objects.filter(created_at__lt=timezone.now() - KEPT_FOR).delete()[0]


def _deliver_and_release() -> None:
    try:
        deliver_due()
    except DatabaseError as error:
        log.warning("notices wait: %s", type(error).__name__)
    finally:
        connection.close()
        _AT_ONCE.release()


@transaction.atomic
def _claim(until: datetime) -> Delivery | None:
    """The oldest delivery that was due by then and that nobody else has."""
    due = (
        Delivery.objects.select_for_update(skip_locked=True, of=("self",))
        .filter(state=Delivery.WAITING, due_at__lte=until)
        .select_related("notice__workspace")
        .order_by("due_at")
        .first()
    )
    if due is not None:
        due.due_at = timezone.now() + _CLAIM
        due.save(update_fields=["due_at"])
    return due


def _try(delivery: Delivery) -> bool:
    delivery.attempts += 1
    try:
        send(delivery)
    except NotDelivered as error:
        _failed(delivery, str(error), final=error.final)
    except UserError as error:
        _failed(delivery, error.message, final=error.code != "host_unknown")
    else:
        delivery.state, delivery.error, delivery.ended_at = Delivery.SENT, "", timezone.now()
    delivery.save(update_fields=["attempts", "state", "error", "due_at", "ended_at"])
    return delivery.state == Delivery.SENT


def _failed(delivery: Delivery, why: str, *, final: bool) -> None:
    delivery.error = why[:200]
    log.warning("notice %s by %s: %s", delivery.notice_id, delivery.channel, why[:200])
    if final or delivery.attempts > len(PAUSES):
        delivery.state, delivery.ended_at = Delivery.FAILED, timezone.now()
    else:
        delivery.due_at = timezone.now() + PAUSES[delivery.attempts - 1]
