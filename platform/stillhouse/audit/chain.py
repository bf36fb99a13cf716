"""The hash that ties every audit event to the one before it."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC
from typing import Any, cast

from stillhouse.audit.models import AuditEvent

GENESIS = "0" * 64
"""`previous_hash` of the first event of a workspace."""


def plain(details: Mapping[str, Any] | None) -> dict[str, Any]:
    """Details as JSON that reads back as written: Postgres may rewrite a float, so floats become text."""
    text = json.dumps(dict(details or {}), default=str)
    return cast(dict[str, Any], json.loads(text, parse_float=str, parse_constant=str))


def hash_of(event: AuditEvent) -> str:
    """sha256 over every column of the event (its own hash and row number apart), as canonical JSON."""
    body = {
        "workspace": event.workspace_id,
        "sequence": event.sequence,
        "at": event.at.astimezone(UTC).isoformat(timespec="microseconds"),
        "actor": event.actor_id,
        "actor_name": event.actor_name,
        "action": event.action,
        "object_id": event.object_id,
        "object_name": event.object_name,
        "details": event.details,
        "previous_hash": event.previous_hash,
    }
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
