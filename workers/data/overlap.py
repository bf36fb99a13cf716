"""Rows that stand in two places: here and in another file, or on both sides of a split."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workers.contract import OtherRows, Overlap, SplitCounts, SplitSpec
from workers.data.batches import check_batch, first_rows
from workers.data.beside import value_at
from workers.data.chat import ChatMessage, Row
from workers.data.checked import CheckedLine
from workers.data.elsewhere import EXACT, NEAR, SAME_QUESTION, RowIndex, question_key, row_key
from workers.data.readers import Limits, open_source
from workers.data.shapes import recognise
from workers.data.split import is_held_out

ROWS, PLACES = 1000, 20
HOW = {EXACT: "is", SAME_QUESTION: "asks the same as", NEAR: "is almost the same as"}
Numbers = NDArray[np.int64]


def index_of(path: Path, other: OtherRows, limits: Limits, *, near: bool) -> RowIndex:
    """The good rows of another file. Raises Unreadable and OSError."""
    source = open_source(path, limits)
    mapping = other.mapping or recognise(first_rows(source, limits.row_bytes))

    def rows() -> Iterator[tuple[int, list[ChatMessage]]]:
        for batch in source.batches():
            for checked in check_batch(batch, limits.row_bytes, mapping):
                if checked.row is not None:
                    yield checked.number, checked.row["messages"]

    return RowIndex(rows(), near=near)


@dataclass
class Shared:
    """Rows of a batch that stand in one other file: their numbers, how, and the numbers there."""

    numbers: Numbers
    how: NDArray[np.int8]
    where: Numbers


@dataclass
class OverlapTally:
    """The same for a whole file."""

    other: OtherRows | None
    """None: the other side of the split."""
    counts: dict[int, int] = field(default_factory=lambda: dict.fromkeys(HOW, 0))
    rows: list[int] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    def add(self, shared: Shared) -> None:
        for kind in HOW:
            self.counts[kind] += int((shared.how == kind).sum())
        self.rows += shared.numbers[: ROWS - len(self.rows)].tolist()
        there = " there" if self.other else ""
        for number, how, where in zip(
            shared.numbers[: PLACES - len(self.places)].tolist(),
            shared.how.tolist(),
            shared.where.tolist(),
            strict=False,
        ):
            self.places.append(f"row {number} {HOW[how]} row {where}{there}")

    def result(self) -> Overlap:
        return Overlap(
            name=self.other.name if self.other else "",
            sha256=self.other.sha256 if self.other else None,
            exact=self.counts[EXACT],
            same_question=self.counts[SAME_QUESTION],
            near=self.counts[NEAR],
            rows=self.rows,
            places=self.places,
        )


@dataclass
class Sides:
    """What is held of the rows of a batch, or of a file, for a split."""

    heldout: "array[int]" = field(default_factory=lambda: array("b"))
    keys: "array[int]" = field(default_factory=lambda: array("Q"))
    questions: "array[int]" = field(default_factory=lambda: array("Q"))
    groups: "array[int]" = field(default_factory=lambda: array("q"))
    """A hash of each row's group; 0 where it has none."""

    def add(self, checked: CheckedLine, split: SplitSpec) -> None:
        if checked.row is None:
            return
        messages = checked.row["messages"]
        row: Row = {"messages": messages, "extra": checked.extra or {}}
        self.heldout.append(is_held_out(row, split))
        self.keys.append(row_key(messages))
        self.questions.append(question_key(messages))
        group = value_at(checked.extra, split.group) if split.group else None
        self.groups.append(hash(group) or 1 if group is not None else 0)

    def merge(self, other: "Sides") -> None:
        self.heldout += other.heldout
        self.keys += other.keys
        self.questions += other.questions
        self.groups += other.groups

    def counts(self, split: SplitSpec) -> SplitCounts:
        held, groups = np.array(self.heldout, dtype=bool), np.array(self.groups, dtype=np.int64)
        grouped = groups != 0
        return SplitCounts(
            spec=split,
            train=int((~held).sum()),
            heldout=int(held.sum()),
            groups=len(np.unique(groups[grouped])),
            heldout_groups=len(np.unique(groups[grouped & held])),
            without_group=int((~grouped).sum()) if split.group else 0,
        )

    def overlap(self, numbers: Numbers, roots: Numbers) -> Overlap:
        """Held-out rows that are trained on as well, in one way or another.

        `roots`: for each row the first row of its group of near duplicates; empty where they were not looked
        for.
        """
        held = np.array(self.heldout, dtype=bool)
        how, where = np.zeros(len(held), dtype=np.int8), np.zeros(len(held), dtype=np.int64)
        marks: Sequence[tuple[int, NDArray[np.uint64] | Numbers]] = (
            (EXACT, np.array(self.keys, dtype=np.uint64)),
            (SAME_QUESTION, np.array(self.questions, dtype=np.uint64)),
            (NEAR, roots),
        )
        for kind, keys in marks:
            if len(keys) != len(held):
                continue
            trained, first = np.unique(keys[~held], return_index=True)
            at = np.searchsorted(trained, keys[held])
            known = np.flatnonzero(at < len(trained))
            known = known[trained[at[known]] == keys[held][known]]
            rows = np.flatnonzero(held)[known]
            new = how[rows] == 0
            how[rows[new]] = kind
            where[rows[new]] = numbers[np.flatnonzero(~held)[first[at[known[new]]]]]
        tally = OverlapTally(None)
        shared = np.flatnonzero(how)
        tally.add(Shared(numbers[shared], how[shared], where[shared]))
        return tally.result()
