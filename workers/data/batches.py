"""Batches of raw rows, checked: the fast way where it knows the answer, the exact way everywhere else."""

from collections.abc import Iterator

from workers.contract import Mapping
from workers.data.chat import Row
from workers.data.checks import CheckedLine, check_line, check_raw, is_plain
from workers.data.fast import fast_row
from workers.data.lines import LineBlock
from workers.data.readers import Batch, RawRow, Source
from workers.data.strict_json import JsonProblem, parse

LOOKED_AT = 200
"""Rows that are looked at to recognise what the fields mean."""


def check_batch(batch: Batch, max_row_bytes: int, mapping: Mapping | None) -> Iterator[CheckedLine]:
    """Check every row of a batch that is not blank."""
    if not isinstance(batch, LineBlock):
        for raw in batch:
            yield check_raw(raw, max_row_bytes, mapping)
        return
    fast = is_plain(mapping)
    for line in batch.lines(max_row_bytes):
        if fast and (found := fast_row(line.data)) is not None:
            row: Row = {"messages": found[0]}
            yield CheckedLine(line.number, row=row, ignored=found[1], source=batch.source)
        elif not line.is_blank:
            yield check_line(line, max_row_bytes, mapping, batch.source)


def first_rows(source: Source, max_row_bytes: int, most: int = LOOKED_AT) -> list[dict[str, object]]:
    """The first few rows that can be read at all, as they stand in the file."""
    found: list[dict[str, object]] = []
    for batch in source.batches():
        for raw in _raw(batch, max_row_bytes):
            if (row := _as_object(raw)) is not None:
                found.append(row)
            if len(found) >= most:
                return found
    return found


def _raw(batch: Batch, max_row_bytes: int) -> Iterator[RawRow]:
    if isinstance(batch, LineBlock):
        yield from (RawRow(line.number, line.data, batch.source) for line in batch.lines(max_row_bytes))
    else:
        yield from batch


def _as_object(raw: RawRow) -> dict[str, object] | None:
    value: object = raw.value
    if isinstance(value, bytes):
        try:
            value = parse(value.decode("utf-8"))
        except (JsonProblem, UnicodeDecodeError):
            return None
    return value if isinstance(value, dict) else None
