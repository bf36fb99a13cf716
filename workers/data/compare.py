"""What differs between two versions: rows added, removed and changed, whatever order they stand in."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from workers.contract import CompareResult, CompareSpec, RowChange
from workers.data.beside import extra_json
from workers.data.chat import ChatMessage
from workers.data.elsewhere import ROWS_A_TIME, RowIndex, question_key, row_key
from workers.data.items import Item, cut, first_difference, written
from workers.data.normalised import batches_of, is_normalised
from workers.data.readers import Unreadable
from workers.data.readers.normals import read_normals

MOST_BY_WORDS = 200_000
"""Rows left over on one side, up to which they are compared by their words."""
PROGRESS_ROWS = 20_000
Indexes = NDArray[np.int64]
Pairs = list[tuple[int, int]]
Progress = Callable[[int], None]


def compare(
    spec: CompareSpec, before: Path, after: Path, on_progress: Progress | None = None
) -> CompareResult:
    """Raises Unreadable when one of the files is not what a check or a derivation has written."""
    start = time.monotonic()
    one, two = (_Side.of(path, on_progress) for path in (before, after))
    left, right = _left_over(one.keys, two.keys)
    same = len(one.keys) - len(left)
    pairs: Pairs = []
    if spec.origin is not None:
        left, right = _paired(left, right, one.numbers, _numbers_at(after, spec.origin), pairs)
    left, right = _paired(left, right, one.questions, two.questions, pairs)
    left, right = _paired_by_words(left, right, before, after, pairs)
    pairs.sort(key=lambda pair: pair[1])
    shown = spec.examples
    old = _items_at(before, [index for index, _ in pairs[:shown]] + left[:shown].tolist())
    new = _items_at(after, [index for _, index in pairs[:shown]] + right[:shown].tolist())
    return CompareResult(
        same=same,
        added=len(right),
        removed=len(left),
        changed=len(pairs),
        added_rows=[RowChange(after_row=new[at].row, after=cut(written(new[at]))) for at in right[:shown]],
        removed_rows=[RowChange(before_row=old[at].row, before=cut(written(old[at]))) for at in left[:shown]],
        changed_rows=[_change(old[first], new[second]) for first, second in pairs[:shown]],
        seconds=round(time.monotonic() - start, 3),
    )


@dataclass
class _Side:
    """What is held of every row of one version, in its order."""

    keys: Indexes
    """Of everything in the row."""
    questions: Indexes
    numbers: Indexes

    @classmethod
    def of(cls, path: Path, on_progress: Progress | None) -> "_Side":
        if not is_normalised(path):
            raise Unreadable("not_normalised", "The version's rows are not in the layout that is compared.")
        keys: list[int] = []
        questions: list[int] = []
        numbers: list[int] = []
        for item in _items(path):
            beside = extra_json(item.extra) or ""
            keys.append(hash((row_key(item.messages), beside)))
            questions.append(question_key(item.messages) >> 1)
            numbers.append(item.row)
            if on_progress is not None and len(keys) % PROGRESS_ROWS == 0:
                on_progress(len(keys))
        return cls(*(np.array(column, dtype=np.int64) for column in (keys, questions, numbers)))


def _items(path: Path) -> Iterator[Item]:
    for raw in read_normals(path):
        value: Any = raw.value
        messages: list[ChatMessage] = value["messages"]
        yield Item(0, raw.number, raw.source, messages, raw.extra)


def _left_over(one: Indexes, two: Indexes) -> tuple[Indexes, Indexes]:
    """Indexes of the rows of each side that have no equal on the other; of repeats, those too many."""
    return _without(one, two), _without(two, one)


def _without(these: Indexes, those: Indexes) -> Indexes:
    order = np.argsort(these, kind="stable")
    ordered, others = these[order], np.sort(those)
    rank = np.arange(len(ordered)) - np.searchsorted(ordered, ordered, "left")
    there = np.searchsorted(others, ordered, "right") - np.searchsorted(others, ordered, "left")
    return np.sort(order[rank >= there])


def _paired(
    left: Indexes, right: Indexes, left_keys: Indexes, right_keys: Indexes, pairs: Pairs
) -> tuple[Indexes, Indexes]:
    """Pair rows with the same key, in order; returns those without a partner."""
    waiting: dict[int, list[int]] = defaultdict(list)
    for index in reversed(left.tolist()):
        waiting[int(left_keys[index])].append(index)
    alone: list[int] = []
    for index in right.tolist():
        partners = waiting.get(int(right_keys[index]))
        if partners:
            pairs.append((partners.pop(), index))
        else:
            alone.append(index)
    rest = sorted(index for partners in waiting.values() for index in partners)
    return np.array(rest, dtype=np.int64), np.array(alone, dtype=np.int64)


def _paired_by_words(
    left: Indexes, right: Indexes, before: Path, after: Path, pairs: Pairs
) -> tuple[Indexes, Indexes]:
    """Pair rows that say almost the same; each is given away once."""
    if not len(left) or not len(right) or max(len(left), len(right)) > MOST_BY_WORDS:
        return left, right
    index = RowIndex((at, item.messages) for at, item in _at(before, left.tolist()))
    taken: set[int] = set()
    alone: list[int] = []
    found = _at(after, right.tolist())
    while batch := list(islice(found, ROWS_A_TIME)):
        how, where = index.look_up([item.messages for _, item in batch])
        for (at, _), kind, partner in zip(batch, how.tolist(), where.tolist(), strict=True):
            if kind and partner not in taken:
                taken.add(partner)
                pairs.append((partner, at))
            else:
                alone.append(at)
    rest = [at for at in left.tolist() if at not in taken]
    return np.array(rest, dtype=np.int64), np.array(alone, dtype=np.int64)


def _numbers_at(path: Path, origin: int) -> Indexes:
    """For each row its number in the source `origin`; -1 for one that came from elsewhere."""
    file = pq.ParquetFile(path)
    if "origin_row" not in file.schema_arrow.names:
        return np.full(file.metadata.num_rows, -1, dtype=np.int64)
    pieces = [
        np.where(batch.column("origin").to_numpy() == origin, batch.column("origin_row").to_numpy(), -1)
        for batch in batches_of(file, ["origin", "origin_row"])
    ]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)


def _at(path: Path, indexes: Iterable[int]) -> Iterator[tuple[int, Item]]:
    wanted = set(indexes)
    if wanted:
        last = max(wanted)
        for index, item in enumerate(_items(path)):
            if index in wanted:
                yield index, item
            if index == last:
                return


def _items_at(path: Path, indexes: Iterable[int]) -> dict[int, Item]:
    return dict(_at(path, indexes))


def _change(old: Item, new: Item) -> RowChange:
    before, after = written(old), written(new)
    at = first_difference(before, after)
    return RowChange(before_row=old.row, after_row=new.row, before=cut(before, at), after=cut(after, at))
