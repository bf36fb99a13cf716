"""Writing the trail."""

from collections.abc import Mapping
from typing import Any

from django.db import connection
from django.utils import timezone

from stillhouse.accounts.models import User, Workspace
from stillhouse.audit.chain import GENESIS, hash_of, plain
from stillhouse.audit.models import AuditEvent
from stillhouse.core.locks import lock_in_transaction

PLATFORM = "Stillhouse"


def record(
    *,
    workspace: Workspace,
    by: User | None,
    action: str,
    object_id: str,
    object_name: str = "",
    details: Mapping[str, Any] | None = None,
) -> AuditEvent:
    """Append one event, inside the caller's transaction: what is rolled back was never recorded.

    `by` is None when the platform itself acted. `details` is small JSON without secrets, prompts or dataset
    text. Appends to one workspace's chain wait for each other until the transaction ends, so that no two
    share a place.
    """
    if not connection.in_atomic_block:
        raise RuntimeError("record() belongs inside the transaction of the change it records")
    lock_in_transaction(f"audit:{workspace.pk}")
    last = AuditEvent.objects.filter(workspace=workspace).order_by("-sequence").first()
    event = AuditEvent(
        workspace=workspace,
        sequence=last.sequence + 1 if last else 1,
        at=timezone.now(),
        actor=by,
        actor_name=(f"{by.name} <{by.email}>" if by.name else by.email)[:200] if by else PLATFORM,
        action=action,
        object_id=object_id,
        object_name=object_name[:200],
        details=plain(details),
        previous_hash=last.hash if last else GENESIS,
    )
    event.hash = hash_of(event)
    event.save(force_insert=True)
    return event
