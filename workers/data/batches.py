"""Batches of raw rows, checked: the fast way where it knows the answer, the exact way everywhere else."""

from collections.abc import Iterator

from workers.contract import Mapping
from workers.data.checked import CheckedLine
from workers.data.checks import check_line, check_raw, is_plain
from workers.data.fast import fast_messages, fast_rows
from workers.data.lines import Line, LineBlock
from workers.data.readers import Batch, RawRow, Source
from workers.data.strict_json import JsonProblem, parse

ESCAPED_NUL = b"\\u0000"
LOOKED_AT = 200
"""Rows that are looked at to recognise what the fields mean."""


def check_batch(
    batch: Batch, max_row_bytes: int, mapping: Mapping | None, mended: Mapping | None = None
) -> Iterator[CheckedLine]:
    """Check every row of a batch that is not blank.

    `mended`: the mapping with more names for roles, for rows whose roles are unknown without them.
    """
    if not isinstance(batch, LineBlock):
        for raw in batch:
            checked = _fast_normal(raw) or check_raw(raw, max_row_bytes, mapping)
            if mended is not None and _has_unknown_role(checked):
                checked = check_raw(raw, max_row_bytes, mended)
                checked.mended = True
            if checked.row is None:
                checked.raw = raw.value
            yield checked
        return
    lines: list[Line] = []
    if is_plain(mapping) and not batch.skipped and not _may_hold_nul(batch.data):
        for at, found in enumerate(fast_rows(batch.data, max_row_bytes)):
            if found is not None:
                messages, extra = found
                checked = CheckedLine(batch.number + at, {"messages": messages}, source=batch.source)
                if extra:
                    checked.extra, checked.ignored = extra, list(extra)
                yield checked
            else:
                lines = lines or list(batch.lines(max_row_bytes))
                yield from _exactly(lines[at], batch.source, max_row_bytes, mapping, mended)
        return
    for line in batch.lines(max_row_bytes):
        yield from _exactly(line, batch.source, max_row_bytes, mapping, mended)


def _may_hold_nul(data: bytes) -> bool:
    return b"\\" in data and ESCAPED_NUL in data  # where nothing is escaped, the first look takes no time


def _exactly(
    line: Line, source: str, max_row_bytes: int, mapping: Mapping | None, mended: Mapping | None
) -> Iterator[CheckedLine]:
    """Nothing of a blank line."""
    if line.is_blank:
        return
    checked = check_line(line, max_row_bytes, mapping, source)
    if mended is not None and _has_unknown_role(checked):
        checked = check_line(line, max_row_bytes, mended, source)
        checked.mended = True
    if checked.row is None:
        checked.raw = line.data
    yield checked


def _has_unknown_role(checked: CheckedLine) -> bool:
    return any(problem.code == "unknown_role" for problem in checked.errors)


def _fast_normal(raw: RawRow) -> CheckedLine | None:
    """A row that was normalised once is found unchanged at the first look, or is checked like any other."""
    if raw.extra is None or not isinstance(raw.value, dict):
        return None
    found = fast_messages(raw.value)
    if found is None:
        return None
    return CheckedLine(raw.number, row={"messages": found}, source=raw.source, extra=raw.extra)


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
    return {**(raw.extra or {}), **value} if isinstance(value, dict) else None
