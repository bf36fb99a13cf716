"""Rows of a file, normalised, whatever spelling the file used."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from workers.contract import Mapping, Problem
from workers.data.batches import check_batch, first_rows
from workers.data.chat import ChatMessage, Extra, Row, canonical, tools_of
from workers.data.normalised import is_normalised, read_normalised
from workers.data.readers import Limits, Unreadable, open_source
from workers.data.shapes import recognise

__all__ = ["MAX_ROW_BYTES", "BadRow", "ChatMessage", "Row", "canonical", "read_rows"]

MAX_ROW_BYTES = 8 * 1024 * 1024


class BadRow(Exception):
    """A row that cannot be used, with everything that is wrong in it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        first = problems[0]
        where = f", {first.field}" if first.field else ""
        super().__init__(f"Row {first.row}{where}: {first.message}" if first.row else first.message)
        self.problems = problems


class NumberedRow(NamedTuple):
    """A row with its place in the file as it was uploaded."""

    number: int
    source: str
    messages: list[ChatMessage]
    extra: Extra | None = None


def read_rows(
    path: Path, max_row_bytes: int = MAX_ROW_BYTES, mapping: Mapping | None = None, *, extra: bool = False
) -> Iterator[Row]:
    """Yield the rows of a file in order: one of the normalised layout, or any that the readers know.

    `extra`: with the fields beside the conversation, as a split by group needs them. Raises BadRow at the
    first bad one, or when the file cannot be read.
    """
    if is_normalised(path):
        yield from read_normalised(path, extra=extra)
        return
    for found in read_numbered(path, max_row_bytes, mapping):
        row = Row(messages=found.messages)
        if extra and found.extra:
            row["extra"] = found.extra
        if tools := tools_of(found.extra):
            row["tools"] = tools
        yield row


def read_numbered(
    path: Path, max_row_bytes: int = MAX_ROW_BYTES, mapping: Mapping | None = None
) -> Iterator[NumberedRow]:
    """The same with the rows' numbers and all they hold. Normalised rows keep the numbers of the original."""
    try:
        source = open_source(path, Limits(row_bytes=max_row_bytes))
        mapping = mapping or recognise(first_rows(source, max_row_bytes))
        for batch in source.batches():
            for checked in check_batch(batch, max_row_bytes, mapping):
                if checked.row is None:
                    raise BadRow(checked.errors)
                yield NumberedRow(checked.number, checked.source, checked.row["messages"], checked.extra)
    except Unreadable as error:
        where = f"{error.source}: " if error.source else ""
        raise BadRow([Problem(row=0, field="", code=error.code, message=where + error.message)]) from None
