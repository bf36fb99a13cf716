"""Parquet files, a few rows at a time, within limits on what their metadata may ask for."""

import datetime
import decimal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from workers.data.readers.source import MAX_COLUMNS, Limits, RawRow, Unreadable, too_many_rows
from workers.data.readers.streams import Allowance

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ROWS, BATCH_BYTES = 128, 32 * 1024**2
"""A batch holds so many rows, or fewer where they are long."""
FIRST_ROWS = 8
METADATA_BYTES = 64 * 1024**2
MAX_DEPTH = 16
FREE_ROWS = 100_000
"""Beyond these a row takes at least a byte of the file: less do only rows that are all the same."""


def read_parquet(file: IO[bytes], limits: Limits, source: str = "") -> Iterator[RawRow]:
    """The rows, numbered from 1, as plain Python values."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - it takes a while to load, and few files need it

    with reading_errors(source) as at:
        opened = pq.ParquetFile(
            file,
            memory_map=False,
            thrift_string_size_limit=METADATA_BYTES,
            thrift_container_size_limit=1_000_000,
        )
        _check_columns(len(opened.schema_arrow.names), opened.metadata.num_columns, source)
        allowance = _weighed(file, opened.metadata, limits, source)
        for batch in _batches(opened, _rows_at_once(opened)):
            allowance.take(batch.nbytes, source)
            for row in batch.to_pylist():
                at.row += 1
                yield RawRow(at.row, {name: _plain(value) for name, value in row.items()}, source)


def _batches(opened: "pq.ParquetFile", rows: int) -> "Iterator[pa.RecordBatch]":
    """So many rows at a time, every value in full: its bytes are what they will take."""
    import pyarrow as pa  # noqa: PLC0415

    for batch in opened.iter_batches(batch_size=rows, use_threads=False):
        columns = [
            column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column
            for column in batch.columns
        ]
        yield pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _rows_at_once(opened: "pq.ParquetFile") -> int:
    """By the first rows: text that a file says once and repeats may be a megabyte in each."""
    first = next(_batches(opened, FIRST_ROWS), None)
    each = first.nbytes // first.num_rows + 1 if first is not None and first.num_rows else 1
    return max(1, min(ROWS, BATCH_BYTES // each))


@dataclass
class _At:
    row: int = 0
    """The last row that could be read."""


@contextmanager
def reading_errors(source: str = "") -> Iterator[_At]:
    """What pyarrow raises over a damaged file, as Unreadable; the block says how far it got."""
    import pyarrow as pa  # noqa: PLC0415

    at = _At()
    try:
        yield at
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError, TypeError, KeyError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        after = f" after row {at.row:,}" if at.row else ""
        raise Unreadable(
            "damaged_parquet", f"The Parquet file cannot be read{after}. Write it again.", source
        ) from None


def _weighed(file: IO[bytes], metadata: "pq.FileMetaData", limits: Limits, source: str) -> Allowance:
    """What the rows may unpack to. What the file says of itself is refused at once where it is too much: that
    it says too little, those who read on find out."""
    packed, rows = file.seek(0, 2), metadata.num_rows
    if rows > limits.rows:
        raise too_many_rows(limits.rows, rows, source)
    if rows > max(FREE_ROWS, packed):
        raise Unreadable(
            "unpacks_too_large",
            f"The file says that its {packed:,} bytes hold {rows:,} rows, far more than its size suggests. "
            "Leave out the repeats, or upload it as JSON Lines or CSV.",
            source,
        )
    allowance = Allowance(packed, limits)
    groups = range(metadata.num_row_groups)
    allowance.check(sum(metadata.row_group(group).total_byte_size for group in groups), source)
    return allowance


def _check_columns(columns: int, leaves: int, source: str) -> None:
    if max(columns, leaves // 4) > MAX_COLUMNS:
        raise Unreadable(
            "too_many_columns",
            f"The file has {columns:,} columns; at most {MAX_COLUMNS:,} are read. Keep the ones that matter.",
            source,
        )


def _plain(value: Any, depth: int = 0) -> object:
    """Values of JSON, and times as text."""
    if isinstance(value, dict) and depth < MAX_DEPTH:
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple) and depth < MAX_DEPTH:
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    return value
