"""What every reader gives: batches of raw rows that know their place."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from workers.contract import MAX_ROWS
from workers.data.chat import Extra
from workers.data.lines import LineBlock

BATCH_ROWS = 512
MAX_COLUMNS = 1000
MAX_FILES = 1000
"""Files in one archive."""


class Unreadable(Exception):
    """Why a file, or the rest of it, cannot be read: a stable code and a sentence for a person."""

    def __init__(self, code: str, message: str, source: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.source = code, message, source


@dataclass(frozen=True, slots=True)
class Limits:
    """What reading one file may cost."""

    row_bytes: int = 8 * 1024 * 1024
    rows: int = MAX_ROWS
    unpacked_bytes: int = 64 * 1024**3
    ratio: int = 250
    """Unpacked bytes for each packed one, beyond the first `free_bytes`."""
    free_bytes: int = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stands in the file."""

    number: int
    """As the program that made the file counts: line, record, sheet row."""
    value: bytes | dict[str, object] | None
    """JSON text, or cells by column; None when the reader could not make a row of it."""
    source: str = ""
    """The file inside an archive, or the sheet."""
    code: str = ""
    message: str = ""
    """Why there is no value; or, with a value, a doubt about the row."""
    extra: Extra | None = None
    """Of a row that was normalised once: `value` holds its messages alone, and this all other fields."""


Batch = LineBlock | list[RawRow]
Notes = dict[str, str]


@dataclass(frozen=True)
class Source:
    """An opened file: what it is, and how to read it, as often as needed."""

    format: str
    batches: Callable[[], Iterator[Batch]]
    """Raises Unreadable where the rest cannot be read."""
    encoding: str = ""
    delimiter: str = ""
    notes: Notes = field(default_factory=dict)
    """Doubts about the file as a whole, by code; more may come while it is read."""


def at_most(batches: Iterator[Batch], rows: int) -> Iterator[Batch]:
    """The batches up to so many rows or lines; raises Unreadable `too_many_rows` when there are more."""
    read = 0
    for batch in batches:
        read += batch.rows if isinstance(batch, LineBlock) else len(batch)
        if read > rows:
            raise too_many_rows(rows)
        yield batch


def too_many_rows(most: int, found: int = 0, source: str = "") -> Unreadable:
    """`found`: as the file itself says; 0: nobody has counted them."""
    rows = f"{found:,} rows, more" if found else "more rows"
    message = f"The file has {rows} than the {most:,} that are read. Split it into several files."
    return Unreadable("too_many_rows", message, source)


def in_batches(rows: Iterator[RawRow], size: int = BATCH_ROWS) -> Iterator[Batch]:
    """Rows in lists of at most `size`."""
    batch: list[RawRow] = []
    for row in rows:
        batch.append(row)
        if len(batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch
