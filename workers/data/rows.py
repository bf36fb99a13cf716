"""Rows of a file, normalised, whatever spelling the file used."""

from collections.abc import Iterator
from pathlib import Path

from workers.contract import Problem
from workers.data.chat import ChatMessage, Row, canonical
from workers.data.checks import check_line
from workers.data.lines import read_lines

__all__ = ["MAX_ROW_BYTES", "BadRow", "ChatMessage", "Row", "canonical", "read_rows"]

MAX_ROW_BYTES = 8 * 1024 * 1024


class BadRow(Exception):
    """A row that cannot be used, with everything that is wrong in it."""

    def __init__(self, problems: list[Problem]) -> None:
        first = problems[0]
        where = f", {first.field}" if first.field else ""
        super().__init__(f"Row {first.row}{where}: {first.message}")
        self.problems = problems


def read_rows(path: Path, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[Row]:
    """Yield the rows of a JSONL file in order, blank lines skipped. Raises BadRow at the first bad one."""
    for line in read_lines(path, max_row_bytes):
        if line.is_blank:
            continue
        checked = check_line(line, max_row_bytes)
        if checked.row is None:
            raise BadRow(checked.errors)
        yield checked.row
