"""Writes of keeping: whether the prompts and answers of an alias are kept, and for how many days."""

from datetime import timedelta

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from stillhouse.accounts.access import require
from stillhouse.accounts.models import Membership
from stillhouse.audit.actions import record
from stillhouse.core.errors import NotFound, UserError
from stillhouse.core.notify import GATEWAY, notify
from stillhouse.publishing.models import Alias, Keeping
from stillhouse.usage.kept import kept_of

MOST_DAYS = 365


@transaction.atomic
def start_keeping(*, by: Membership, alias: Alias, days: int) -> Keeping:
    """Keep prompts and answers of the alias from the next request on, for so many days; or change the days.

    Fewer days hold for what is kept already, too; more do not. Raises NotFound, UserError `not_allowed` or
    `bad_days`.
    """
    _of_workspace(by, alias)
    if not 1 <= days <= MOST_DAYS:
        raise UserError(
            "bad_days",
            f"{days} days cannot be kept.",
            "days",
            f"Choose a whole number from 1 to {MOST_DAYS}.",
        )
    keeping, _ = Keeping.objects.update_or_create(alias=alias, defaults={"days": days, "changed_by": by.user})
    latest = F("at") + timedelta(days=days)
    kept_of(by, alias.name).filter(expires_at__gt=latest).update(expires_at=latest)
    _record(by, alias, "alias.keeping_on", {"days": days})
    return keeping


@transaction.atomic
def stop_keeping(*, by: Membership, alias: Alias) -> None:
    """Keep nothing any more, and let the keeper remove at once what is there. Harmless where it is off."""
    _of_workspace(by, alias)
    Keeping.objects.filter(alias=alias).delete()
    count = kept_of(by, alias.name).update(expires_at=timezone.now())
    _record(by, alias, "alias.keeping_off", {"removed": count})


def _of_workspace(by: Membership, alias: Alias) -> None:
    if alias.workspace_id != by.workspace_id:
        raise NotFound("alias")
    require(by, "alias.keep")


def _record(by: Membership, alias: Alias, action: str, details: dict[str, object]) -> None:
    record(
        workspace=by.workspace,
        by=by.user,
        action=action,
        object_id=alias.id,
        object_name=alias.name,
        details=details,
    )
    notify(GATEWAY)
