"""A held-out split that any process makes again from the same rows."""

import hashlib
from collections.abc import Iterable

from workers.contract import SplitSpec
from workers.data.chat import Row, canonical


def is_held_out(row: Row, split: SplitSpec) -> bool:
    """Whether `row` is on the held-out side; depends on the seed and the row's own content alone.

    So the sides stay the same when rows are added, removed or put in another order, and exact duplicates
    never end up on both sides.
    """
    digest = hashlib.sha256(f"{split.seed}\n".encode() + canonical(row)).digest()
    return int.from_bytes(digest[:8], "big") < split.share * 2**64


def split_rows(rows: Iterable[Row], split: SplitSpec) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows held out, both in the order given."""
    train: list[Row] = []
    heldout: list[Row] = []
    for row in rows:
        (heldout if is_held_out(row, split) else train).append(row)
    return train, heldout
