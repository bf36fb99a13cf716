"""A held-out split that any process makes again from the same rows."""

import hashlib
from collections.abc import Iterable

from workers.contract import SplitSpec
from workers.data.beside import value_at
from workers.data.chat import Row, canonical


def is_held_out(row: Row, split: SplitSpec) -> bool:
    """Whether `row` is on the held-out side; depends on the seed and the row's own content or group alone.

    So the sides stay the same when rows are added, removed or put in another order, and exact duplicates, or
    all rows of a group, never end up on both sides. A split by group needs the row's `extra`.
    """
    group = value_at(row.get("extra"), split.group) if split.group else None
    by = canonical(row) if group is None else b"group\n" + group.encode()
    digest = hashlib.sha256(f"{split.seed}\n".encode() + by).digest()
    return int.from_bytes(digest[:8], "big") < split.share * 2**64


def split_rows(rows: Iterable[Row], split: SplitSpec) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows held out, both in the order given."""
    train: list[Row] = []
    heldout: list[Row] = []
    for row in rows:
        (heldout if is_held_out(row, split) else train).append(row)
    return train, heldout
