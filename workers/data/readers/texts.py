"""Readers of text: a JSON list item by item, and tables whose cells are separated by a character."""

import csv
import io
import re
from collections.abc import Iterator
from typing import BinaryIO

from workers.data.readers.source import MAX_COLUMNS, Limits, RawRow, Unreadable
from workers.data.readers.streams import READ

_OUTSIDE = re.compile(rb'["\[\]{},]')
_INSIDE = re.compile(rb'["\\]')


def read_json_list(file: BinaryIO, limits: Limits, source: str = "") -> Iterator[RawRow]:
    """The items of the one list that `file` holds, as JSON texts, numbered from 1.

    Only brackets, quotes and commas are looked at here; what an item really is, the strict parser says.
    """
    splitter = _Splitter(limits.row_bytes, source)
    while data := file.read(READ):
        yield from splitter.feed(data)
    yield from splitter.end()


class _Splitter:
    """Cuts the text of a list at the commas of its first level."""

    def __init__(self, max_bytes: int, source: str) -> None:
        self._max, self._source = max_bytes, source
        self._number, self._depth, self._size = 0, 0, 0
        self._quoted = self._escaped = self._closed = False
        self._pieces: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[RawRow]:
        start = at = 0
        while True:
            if self._escaped and at < len(data):
                at, self._escaped = at + 1, False
            found = (_INSIDE if self._quoted else _OUTSIDE).search(data, at)
            if found is None:
                break
            at, mark = found.end(), found.group()
            if self._quoted:
                self._quoted, self._escaped = mark == b"\\", mark == b"\\"
                continue
            if self._closed:
                self._keep(mark)
            if mark == b'"':
                self._quoted = True
            elif mark in b"[{":
                self._depth += 1
                if self._depth == 1:
                    start = at
            elif mark == b"," and self._depth == 1:
                self._keep(data[start : at - 1])
                yield self._item()
                start = at
            elif mark in b"]}":
                self._depth -= 1
                if self._depth == 0:
                    self._keep(data[start : at - 1])
                    if any(piece.strip() for piece in self._pieces) or self._size > self._max:
                        yield self._item()
                    self._closed, self._pieces = True, []
                    start = at
        self._keep(data[start:])

    def _keep(self, piece: bytes) -> None:
        """Hold a piece of the item, unless the item is too long already or the list is over."""
        if self._closed:
            if piece.strip():
                raise Unreadable(
                    "after_the_list", "Something stands after the end of the list. Keep one list in the file."
                )
            return
        self._size += len(piece)
        if self._size <= self._max:
            self._pieces.append(piece)

    def _item(self) -> RawRow:
        self._number += 1
        data, size = b"".join(self._pieces).strip(), self._size
        self._pieces, self._size = [], 0
        if size > self._max:
            message = (
                f"This item is {size:,} bytes long; at most {self._max:,} are read. Split it into several."
            )
            return RawRow(self._number, None, self._source, "row_too_long", message)
        return RawRow(self._number, data, self._source)

    def end(self) -> Iterator[RawRow]:
        if not self._closed:
            raise Unreadable(
                "cut_off",
                f"The list is cut off after item {self._number:,}: its closing bracket is missing. "
                "Was the file copied completely?",
                self._source,
            )
        yield from ()


def read_table(file: BinaryIO, delimiter: str, limits: Limits, source: str = "") -> Iterator[RawRow]:
    """The records of a CSV file with a header, as cells by column; their number is the line they begin on."""
    csv.field_size_limit(limits.row_bytes)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, delimiter=delimiter)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "field larger" in str(error):
                raise Unreadable(
                    "cell_too_long",
                    f"The record on line {number:,} has a cell of more than {limits.row_bytes:,} bytes. "
                    "Often a quotation mark is missing before this line.",
                    source,
                ) from None
            yield RawRow(number, None, source, "not_csv", "This record is not CSV. Mend its quotation marks.")
            continue
        if not any(cells):
            continue
        if header is None:
            header = column_names(cells, source)
            continue
        yield record(number, header, cells, source)


def column_names(cells: list[str], source: str = "") -> list[str]:
    """The header as names that are all different and none empty."""
    if len(cells) > MAX_COLUMNS:
        raise Unreadable(
            "too_many_columns",
            f"The header has {len(cells):,} columns; at most {MAX_COLUMNS:,} are read. "
            "Keep the columns with the question and the answer.",
            source,
        )
    names: list[str] = []
    for index, cell in enumerate(cells, start=1):
        name = cell.strip() or f"column {index}"
        names.append(name if name not in names else f"{name} ({index})")
    return names


def record(number: int, header: list[str], cells: list[str], source: str) -> RawRow:
    """A record under its header; missing cells are empty, cells beyond the header make it unreadable."""
    extra = [cell for cell in cells[len(header) :] if cell.strip()]
    if extra:
        return RawRow(
            number,
            None,
            source,
            "too_many_cells",
            f"This record has {len(cells):,} cells under {len(header):,} columns. "
            "Put cells that hold the delimiter or a line break in quotation marks.",
        )
    return RawRow(number, dict(zip(header, cells, strict=False)), source)
