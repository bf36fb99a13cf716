"""Excel workbooks, row by row. Formulas are read by the value that was stored with them, never computed."""

import datetime
import re
import zipfile
from collections.abc import Iterator
from typing import IO, Any
from xml.etree.ElementTree import ParseError

from defusedxml.common import DefusedXmlException

from workers.data.readers.source import MAX_COLUMNS, Limits, Notes, RawRow, Unreadable
from workers.data.readers.streams import Allowance, Bounded
from workers.data.readers.texts import column_names, is_header

ERRORS = frozenset({"#N/A", "#VALUE!", "#REF!", "#DIV/0!", "#NUM!", "#NAME?", "#NULL!"})
TITLE_ROWS = 20
"""So many rows at the top may be a title rather than the header."""
_TOO_WIDE = re.compile(r"[A-Z]{4,}\d*'? is not a valid")
"""In what openpyxl says of a cell beyond the 18,278th column."""
EMPTY_ROWS = 10_000
"""So many empty rows on end are taken for the end of the sheet: a stray cell far below costs nothing."""


def read_workbook(
    file: IO[bytes], limits: Limits, source: str = "", *, notes: Notes | None = None
) -> Iterator[RawRow]:
    """The rows of the first visible sheet that has any, under the first row that can be a header.

    `notes` is told of sheets that are not read.
    """
    _weigh(file, limits, source)
    import openpyxl  # noqa: PLC0415 - only workbooks need it

    try:
        book = openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)
        sheets = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]
        for at, sheet in enumerate(sheets):
            rows = _sheet(sheet, f"{source}, {sheet.title}" if source else sheet.title, notes)
            if (first := next(rows, None)) is not None:
                if notes is not None and sheets[at + 1 :]:
                    notes["skipped_sheets"] = (
                        f"Only the sheet {sheet.title[:60]!r} is read, not the {len(sheets) - at - 1} after "
                        "it. Save the sheet that is meant as a file of its own."
                    )
                yield first
                yield from rows
                return
    except (DefusedXmlException, ParseError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        code, what = "damaged_workbook", "cannot be read as an Excel workbook"
        if _TOO_WIDE.search(f"{error} {error.__cause__}"):
            message = (
                f"The sheet has cells beyond column ZZZ; at most {MAX_COLUMNS:,} columns are read. "
                "Keep the columns with the question and the answer."
            )
            raise Unreadable("too_many_columns", message, source) from None
        if isinstance(error, DefusedXmlException) or isinstance(error.__cause__, DefusedXmlException):
            code, what = "xml_entities", "holds XML entities, which no spreadsheet program writes"
        raise Unreadable(
            code, f"The file {what}. Open it in a spreadsheet program and save it again, or as CSV.", source
        ) from None


def _weigh(file: IO[bytes], limits: Limits, source: str) -> None:
    """Unpack every part once and throw it away: what a workbook claims to unpack to is not believed."""
    try:
        whole = Allowance(file.seek(0, 2), limits)
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                part_only = Allowance(info.compress_size, limits)
                with Bounded(archive.open(info), part_only, whole, name=source) as part:
                    while part.read(1 << 20):
                        pass
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError):
        raise Unreadable(
            "damaged_workbook",
            "The workbook is damaged or has a password. Save it again without one.",
            source,
        ) from None


def _sheet(sheet: Any, source: str, notes: Notes | None) -> Iterator[RawRow]:
    header: list[str] | None = None
    empty = 0
    sheet.reset_dimensions()  # programs write wrong ones, and what stands outside would not be read
    for number, cells in enumerate(sheet.iter_rows(values_only=True), start=1):
        if not any(cell is not None and cell != "" for cell in cells):
            empty += 1
            if empty > EMPTY_ROWS:
                return
            continue
        empty = 0
        if header is None:
            if number <= TITLE_ROWS and not is_header(cells):
                continue
            header = column_names([str(cell) if cell is not None else "" for cell in _trimmed(cells)], source)
            continue
        if notes is not None and len(cells) > len(header) and _trimmed(cells[len(header) :]):
            notes.setdefault(
                "cells_beyond_header",
                f"Row {number:,} has cells to the right of the last column with a name. Such cells are "
                "not read: give the column a name in the header.",
            )
        yield _row(number, header, cells, source)


def _trimmed(cells: tuple[object, ...]) -> list[object]:
    found = list(cells)
    while found and (found[-1] is None or found[-1] == ""):
        found.pop()
    return found


def _row(number: int, header: list[str], cells: tuple[object, ...], source: str) -> RawRow:
    row: dict[str, object] = {}
    for name, cell in zip(header, cells, strict=False):
        if isinstance(cell, str) and cell in ERRORS:
            message = f"The cell under {name[:60]!r} shows the error {cell}. Mend its formula."
            return RawRow(number, None, source, "cell_error", message)
        row[name] = _plain(cell)
    return RawRow(number, row, source)


def _plain(cell: object) -> object:
    if isinstance(cell, datetime.datetime | datetime.date | datetime.time):
        return cell.isoformat()
    return str(cell) if isinstance(cell, datetime.timedelta) else cell
