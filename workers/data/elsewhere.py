"""Whether a row also stands in another file: by the same words, by the same question, or almost.

Rows are known by short keys held in sorted arrays: 16 bytes a row, and 400 more where almost is asked for.
"""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import islice

import msgspec
import numpy as np
from numpy.typing import NDArray

from workers.data.chat import ChatMessage
from workers.data.near import BAND, BANDS, SIMILAR, Signatures, signatures

Keys = NDArray[np.uint64]
Numbers = NDArray[np.int64]
EXACT, SAME_QUESTION, NEAR = 1, 2, 3
"""How a row stands elsewhere; 0: it does not."""
CANDIDATES = 8
"""Rows of a band that a row is compared with."""
MAX_NEAR = 1_000_000
"""Rows that are also known by their signatures."""
ROWS_A_TIME = 1024
_encode = msgspec.json.Encoder().encode


def row_key(messages: Sequence[ChatMessage]) -> int:
    """Of the whole conversation."""
    return _key(_encode(messages))


def question_key(messages: Sequence[ChatMessage]) -> int:
    """Of what the last answer answers."""
    return _key(_encode(messages[:-1]))


def _key(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def said(messages: Sequence[ChatMessage]) -> str:
    """The words by which rows are almost the same."""
    said = [message["content"] for message in messages if message["role"] != "system"]
    called = [_encode(message["tool_calls"]).decode() for message in messages if "tool_calls" in message]
    return "\n".join(said + called)


class RowIndex:
    """The rows of one file, to look others up in."""

    def __init__(self, rows: Iterable[tuple[int, list[ChatMessage]]], *, near: bool = True) -> None:
        """`rows`: their numbers and messages."""
        numbers: list[int] = []
        keys: list[int] = []
        questions: list[int] = []
        marks: list[Signatures] = []
        found = iter(rows)
        while batch := list(islice(found, ROWS_A_TIME)):
            numbers += [number for number, _ in batch]
            keys += [row_key(messages) for _, messages in batch]
            questions += [question_key(messages) for _, messages in batch]
            if near and len(numbers) <= MAX_NEAR:
                marks.append(signatures([said(messages) for _, messages in batch]))
        self.numbers: Numbers = np.array(numbers, dtype=np.int64)
        self._keys = _Sorted(np.array(keys, dtype=np.uint64))
        self._questions = _Sorted(np.array(questions, dtype=np.uint64))
        self._marks = np.concatenate(marks) if marks else np.zeros((0, BANDS * BAND), dtype=np.uint16)
        self._bands = [_Sorted(_band(self._marks, band)) for band in range(BANDS)]

    def look_up(
        self, rows: Sequence[list[ChatMessage]], marks: Signatures | None = None
    ) -> tuple[NDArray[np.int8], Numbers]:
        """How each row stands here (0, EXACT, SAME_QUESTION or NEAR), and the number of the row it is like.

        `marks`: the rows' signatures, where they are known already.
        """
        how = np.zeros(len(rows), dtype=np.int8)
        where = np.full(len(rows), -1, dtype=np.int64)
        if len(self.numbers) and rows:
            keys = np.array([row_key(row) for row in rows], dtype=np.uint64)
            questions = np.array([question_key(row) for row in rows], dtype=np.uint64)
            _put(how, where, self._keys.first(keys), EXACT)
            _put(how, where, self._questions.first(questions), SAME_QUESTION)
            if len(self._marks):
                marks = signatures([said(row) for row in rows]) if marks is None else marks
                _put(how, where, self._nearest(marks), NEAR)
            where[how > 0] = self.numbers[where[how > 0]]
        return how, where

    def _nearest(self, marks: Signatures) -> Numbers:
        """Index of a row with at least SIMILAR of the signature in common; -1 where there is none."""
        found = np.full(len(marks), -1, dtype=np.int64)
        for band, known in enumerate(self._bands):
            keys = _band(marks, band)
            first, last = known.ends(keys)
            for step in range(CANDIDATES):
                at = np.flatnonzero((first + step < last) & (found < 0))
                if not len(at):
                    break
                others = known.order[first[at] + step]
                alike = (marks[at] == self._marks[others]).mean(axis=1) >= SIMILAR
                found[at[alike]] = others[alike]
        return found


class _Sorted:
    """Keys in order, and where they stood."""

    def __init__(self, keys: Keys) -> None:
        self.order = np.argsort(keys, kind="stable")
        self._keys = keys[self.order]

    def ends(self, keys: Keys) -> tuple[Numbers, Numbers]:
        """Where equal keys begin and end in `order`."""
        return np.searchsorted(self._keys, keys, "left"), np.searchsorted(self._keys, keys, "right")

    def first(self, keys: Keys) -> Numbers:
        """Where each key stood first; -1 for one that is not here."""
        start, end = self.ends(keys)
        found = np.full(len(keys), -1, dtype=np.int64)
        found[start < end] = self.order[start[start < end]]
        return found


def _band(marks: Signatures, band: int) -> Keys:
    return np.ascontiguousarray(marks[:, band * BAND : (band + 1) * BAND]).view(np.uint64).ravel()


def _put(how: NDArray[np.int8], where: Numbers, found: Numbers, kind: int) -> None:
    new = (how == 0) & (found >= 0)
    how[new] = kind
    where[new] = found[new]
