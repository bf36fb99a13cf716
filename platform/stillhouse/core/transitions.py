"""State changes: one conditional UPDATE, and the tables of what may follow what."""

from collections.abc import Mapping
from typing import Any

from django.db.models import Model

Table = Mapping[str, frozenset[str]]


def transition(instance: Model, table: Table, to: str, /, **changes: Any) -> bool:
    """Move `instance.state` to `to` if the row is, now, in a state that `table` allows it from.

    Returns whether this call made the change: of several callers racing exactly one gets True. `changes` are
    written in the same UPDATE. On success the instance is refreshed.
    """
    sources = [state for state, targets in table.items() if to in targets]
    if not sources:
        raise ValueError(f"nothing leads to state {to!r}")
    rows = type(instance)._default_manager.filter(pk=instance.pk, state__in=sources)
    if not rows.update(state=to, **changes):
        return False
    instance.refresh_from_db()
    return True
