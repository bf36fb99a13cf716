"""State changes: one conditional UPDATE, and the tables of what may follow what."""

from collections.abc import Mapping
from typing import Any

from django.db.models import Model

Table = Mapping[str, frozenset[str]]


def transition(
    instance: Model,
    table: Table,
    to: str,
    /,
    *,
    where: Mapping[str, Any] | None = None,
    refresh: bool = True,
    **changes: Any,
) -> bool:
    """Move `instance.state` to `to` if the row is, now, in a state that `table` allows it from.

    Returns whether this call made the change: of several callers racing exactly one gets True. `where`
    narrows the row further (a fencing token, say); `changes` are written in the same UPDATE. On success the
    instance is refreshed, unless the caller knows what it needs of it.
    """
    sources = [state for state, targets in table.items() if to in targets]
    if not sources:
        raise ValueError(f"nothing leads to state {to!r}")
    rows = type(instance)._default_manager.filter(pk=instance.pk, state__in=sources, **(where or {}))
    if not rows.update(state=to, **changes):
        return False
    if refresh:
        instance.refresh_from_db()
    return True
