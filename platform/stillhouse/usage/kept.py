"""Prompts and answers that a workspace keeps for a while: reading them, and the end of them."""

from django.db.models import QuerySet
from django.utils import timezone

from stillhouse.accounts.models import Membership
from stillhouse.usage.models import KeptExchange

_BATCH = 1000


def kept_of(by: Membership, alias: str) -> QuerySet[KeptExchange]:
    """The alias's exchanges that have not expired, the newest first. Of the member's workspace only."""
    now = timezone.now()
    return KeptExchange.objects.filter(workspace=by.workspace, alias=alias, expires_at__gt=now).order_by(
        "-at"
    )


def forget_expired() -> int:
    """Remove what has expired, a batch at a time; returns how many. The keeper does this."""
    removed = 0
    while True:
        expired = KeptExchange.objects.filter(expires_at__lte=timezone.now()).values_list("pk", flat=True)
        count, _ = KeptExchange.objects.filter(pk__in=list(expired[:_BATCH])).delete()
        removed += count
        if count < _BATCH:
            return removed
