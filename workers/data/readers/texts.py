"""Readers of text: a JSON list item by item, and tables whose cells are separated by a character."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from workers.data.readers.source import MAX_COLUMNS, Limits, RawRow, Unreadable
from workers.data.readers.streams import READ

_OUTSIDE = re.compile(rb'["\[\]{},]')
_INSIDE = re.compile(rb'["\\]')


def read_json_list(file: BinaryIO, limits: Limits, source: str = "", *, skip: int = 0) -> Iterator[RawRow]:
    """The items of the one list that `file` holds, as JSON texts, numbered from 1.

    Only brackets, quotes and commas are looked at here; what an item really is, the strict parser says.
    `skip`: bytes before a list that stands inside of an object; what comes after it is not read then.
    """
    splitter = _Splitter(limits.row_bytes, source, inside=skip > 0)
    file.read(skip)
    while data := file.read(READ):
        yield from splitter.feed(data)
    yield from splitter.end()


def read_json_objects(file: BinaryIO, limits: Limits, source: str = "") -> Iterator[RawRow]:
    """Objects that follow each other, over as many lines as they like, numbered from 1."""

    def closed() -> Iterator[bytes]:
        # A list without commas: an object that ends on the first level ends the item.
        yield b"["
        while data := file.read(READ):
            yield data
        yield b"]"

    splitter = _Splitter(limits.row_bytes, source, commas=False)
    for data in closed():
        yield from splitter.feed(data)
    yield from splitter.end()


class _Splitter:
    """Cuts the text of a list at the commas of its first level."""

    def __init__(self, max_bytes: int, source: str, *, inside: bool = False, commas: bool = True) -> None:
        """`inside`: what follows the list is not looked at. `commas`: whether they part the items, or else
        their closing braces do."""
        self._max, self._source, self._inside, self._commas = max_bytes, source, inside, commas
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
                continue
            deep = self._depth
            self._depth += 1 if mark in b"[{" else -1 if mark in b"]}" else 0
            ends = self._ends(mark, deep)
            if ends is not None:
                self._keep(data[start : at - 1 if ends else at])
                if not ends or mark == b"," or self._holds_something():
                    yield self._item()
            if ends is not None or deep + self._depth == 1:
                start = at  # after an item, or at either end of the list
            if self._depth == 0 and deep == 1:
                self._closed, self._pieces = True, []
        self._keep(data[start:])

    def _ends(self, mark: bytes, deep: int) -> bool | None:
        """Whether the mark ends an item that it is no part of; False when it is its last character; None when
        it ends none. `deep`: the level before it."""
        if (mark == b"," and deep == 1 and self._commas) or (deep == 1 and self._depth == 0):
            return True
        return False if deep == 2 and self._depth == 1 and not self._commas else None

    def _holds_something(self) -> bool:
        return any(piece.strip() for piece in self._pieces) or self._size > self._max

    def _keep(self, piece: bytes) -> None:
        """Hold a piece of the item, unless the item is too long already or the list is over."""
        if self._closed:
            if piece.strip() and not self._inside:
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
        if not self._commas:
            data = data.lstrip(b", \t\r\n")
        self._pieces, self._size = [], 0
        if size > self._max:
            message = (
                f"This item is {size:,} bytes long; at most {self._max:,} are read. Split it into several."
            )
            return RawRow(self._number, None, self._source, "row_too_long", message)
        return RawRow(self._number, data, self._source)

    def end(self) -> Iterator[RawRow]:
        if not self._closed:
            what = "list" if self._commas else "object"
            raise Unreadable(
                "cut_off",
                f"The {what} after item {self._number:,} is cut off: its closing bracket is missing. "
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
            if is_header(cells):
                header = column_names(cells, source)
            continue
        yield record(number, header, cells, source)


def is_header(cells: Sequence[object]) -> bool:
    """Whether these cells may name columns: a title above a table fills one cell."""
    return sum(cell is not None and str(cell).strip() != "" for cell in cells) > 1


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
