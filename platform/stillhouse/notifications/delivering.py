"""Deliveries that are due, and the pauses between attempts."""

import logging
from datetime import timedelta

from django.db import transaction
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
_AT_A_TIME = 20
_CLAIM = timedelta(minutes=2)
"""Longer than an attempt can take: nobody else tries it meanwhile, and a keeper that dies loses nothing."""


def deliver_due() -> int:
    """Try what is due, oldest first, a few at a time; returns how many got there. The keeper does this."""
    return sum(_try(delivery) for delivery in _claim())


def forget_old_notices() -> int:
    """Remove notices of more than a month ago; returns how many."""
    return Notice.objects.filter(created_at__lt=timezone.now() - KEPT_FOR).delete()[0]


@transaction.atomic
def _claim() -> list[Delivery]:
    now = timezone.now()
    due = (
        Delivery.objects.select_for_update(skip_locked=True, of=("self",))
        .filter(state=Delivery.WAITING, due_at__lte=now)
        .select_related("notice__workspace")
        .order_by("due_at")[:_AT_A_TIME]
    )
    claimed = list(due)
    Delivery.objects.filter(pk__in=[one.pk for one in claimed]).update(due_at=now + _CLAIM)
    return claimed


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
