"""A new version from old ones: rows flow from the sources through one operation after the other, and the
result is checked like any upload."""

import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workers.contract import (
    Append,
    DeriveResult,
    DeriveSpec,
    DropContaining,
    DropDuplicates,
    DropOverlap,
    DropProblems,
    DropRows,
    Filter,
    MapRole,
    Mask,
    Operation,
    TakeSide,
    Trim,
    ValidateSpec,
    ValidationReport,
)
from workers.data import operations as do
from workers.data.elsewhere import RowIndex
from workers.data.items import Item, SourceCounts, read_items
from workers.data.normalised import RowsWriter, record_batch
from workers.data.readers import Limits
from workers.data.validation import peak_rss_bytes, validate

PROGRESS_SECONDS = 0.5
FORMAT = "rows of other versions"
Progress = Callable[[int], None]


def derive(
    spec: DeriveSpec,
    *,
    sources: list[Path],
    out: Path,
    on_progress: Progress | None = None,
    others: Sequence[Path] = (),
) -> DeriveResult:
    """Make the rows and, unless it is a dry run, write them to `out`/rows.parquet and report on them.

    The file is there even when it holds no row. Raises Unreadable for a source that cannot be read,
    TooManyRows, and OSError.
    """
    start = time.monotonic()
    pipeline = _Pipeline(spec, sources, out)
    items = _told(pipeline.items(), on_progress)
    report = None
    if spec.dry_run:
        for _ in items:
            pass
    else:
        report = _write(spec, items, out, others)
    return DeriveResult(
        operations=[done.result() for done in pipeline.done],
        rows=[counts.rows for counts in pipeline.counts],
        refused=[counts.refused for counts in pipeline.counts],
        report=report,
        seconds=round(time.monotonic() - start, 3),
        peak_rss_bytes=peak_rss_bytes(),
    )


def _told(items: Iterable[Item], on_progress: Progress | None) -> Iterator[Item]:
    told = time.monotonic()
    for count, item in enumerate(items, start=1):
        if on_progress is not None and time.monotonic() - told >= PROGRESS_SECONDS:
            told = time.monotonic()
            on_progress(count)
        yield item


@dataclass
class _Pipeline:
    spec: DeriveSpec
    sources: list[Path]
    folder: Path
    done: list[do.Done] = field(default_factory=list)
    """One for each operation."""
    counts: list[SourceCounts] = field(default_factory=list)
    """One for each source."""

    def __post_init__(self) -> None:
        self.counts = [SourceCounts() for _ in self.spec.sources]
        self.limits = Limits(row_bytes=self.spec.max_row_bytes, unpacked_bytes=self.spec.unpacked_bytes)
        self.erased = [
            do.text_containing(op) for op in self.spec.operations if isinstance(op, DropContaining)
        ]
        self.roles = {op.role.lower(): op.to for op in self.spec.operations if isinstance(op, MapRole)}

    def items(self) -> Iterator[Item]:
        items: Iterator[Item] = self._read(0)
        for operation in self.spec.operations:
            # What is masked or erased must not live on in the result; a dry run is looked at and forgotten.
            secret = isinstance(operation, Mask | DropContaining) and not self.spec.dry_run
            done = do.Done(operation.op, 0 if secret else self.spec.examples)
            self.done.append(done)
            items = self._stage(operation, items, done)
        return items

    def _read(self, source: int) -> Iterator[Item]:
        return read_items(
            self.sources[source],
            source,
            self.spec.sources[source],
            self.limits,
            self.roles,
            self.counts[source],
            self.spec.examples,
            self._is_erased if self.erased else None,
        )

    def _is_erased(self, text: str) -> bool:
        return any(holds(text) for holds in self.erased)

    def _stage(self, op: Operation, items: Iterator[Item], done: do.Done) -> Iterator[Item]:
        match op:
            case DropRows():
                stage = do.drop_where(items, done, do.drop_rows(op))
            case DropDuplicates():
                stage = do.drop_near(items, done, self.folder) if op.near else do.drop_repeats(items, done)
            case DropProblems():
                stage = do.drop_problems(items, op, done)
            case Trim():
                stage = do.trim(items, op, done)
            case Mask():
                stage = do.mask_personal(items, op, done)
            case Filter():
                stage = do.drop_where(items, done, do.filtered(op), do.place_of(op.contains))
            case DropContaining():
                stage = self._without(items, op, done)
            case TakeSide():
                stage = do.drop_where(items, done, do.take_side(op))
            case Append():
                stage = self._appended(items, op, done)
            case DropOverlap():
                stage = self._without_overlap(items, op, done)
            case MapRole():
                stage = self._mended(items, done)
        return stage

    def _without(self, items: Iterator[Item], op: DropContaining, done: do.Done) -> Iterator[Item]:
        yield from do.drop_where(items, done, do.containing(op), do.place_of(op.text))
        if in_error := sum(counts.refused_found for counts in self.counts):
            done.found["in_error"] = in_error

    def _appended(self, items: Iterator[Item], op: Append, done: do.Done) -> Iterator[Item]:
        for item in items:
            yield done.keep(item)
        for item in self._read(op.source):
            done.rows_out += 1
            yield item

    def _without_overlap(self, items: Iterator[Item], op: DropOverlap, done: do.Done) -> Iterator[Item]:
        others = ((item.row, item.messages) for item in self._read(op.source))
        yield from do.drop_overlap(items, done, RowIndex(others, near=op.near), near=op.near)

    def _mended(self, items: Iterator[Item], done: do.Done) -> Iterator[Item]:
        """Roles are mapped while a source is read; here only what came of it is told."""
        for item in items:
            yield done.keep(item)
        done.changed = sum(counts.mended_rows for counts in self.counts)
        for item in chain.from_iterable(counts.mended for counts in self.counts):
            done.show(item)


def _write(spec: DeriveSpec, items: Iterator[Item], out: Path, others: Sequence[Path]) -> ValidationReport:
    """Write the items, check them as a file of their own, and say in it where they came from."""
    made, checked, rows_file = out / "made.parquet", out / "checked.parquet", out / "rows.parquet"
    try:
        origins = _write_items(items, made)
        report = validate(
            made,
            ValidateSpec(
                near_duplicates=spec.near_duplicates,
                max_row_bytes=spec.max_row_bytes,
                unpacked_bytes=spec.unpacked_bytes,
                output_bytes=spec.output_bytes,
                split=spec.split,
                others=spec.others,
            ),
            rows_file=checked,
            others=others,
        )
        _add_origins(checked, rows_file, *origins)
    finally:
        made.unlink(missing_ok=True)
        checked.unlink(missing_ok=True)
    reading = report.reading and report.reading.model_copy(update={"format": FORMAT})
    return report.model_copy(update={"reading": reading})


def _write_items(items: Iterable[Item], file: Path) -> "tuple[array[int], array[int]]":
    """Number the items from 1; returns the source and row that each came from."""
    origins, rows = array("i"), array("q")
    writer = RowsWriter(file)
    try:
        for batch in do.in_batches(items):
            first = len(rows) + 1
            origins.extend(item.origin for item in batch)
            rows.extend(item.row for item in batch)
            numbers = range(first, first + len(batch))
            sources = [item.source for item in batch]
            messages = [item.messages for item in batch]
            writer.write(record_batch(numbers, sources, messages, [item.extra for item in batch]))
    finally:
        writer.close()
    return origins, rows


def _add_origins(checked: Path, rows_file: Path, origins: "array[int]", rows: "array[int]") -> None:
    """Copy the checked rows with two columns more; a row's number says where to look them up."""
    from_source, from_row = np.array(origins, dtype=np.int32), np.array(rows, dtype=np.int64)
    file = pq.ParquetFile(checked)
    layout = file.schema_arrow.append(pa.field("origin", pa.int32())).append(
        pa.field("origin_row", pa.int64())
    )
    with pq.ParquetWriter(rows_file, layout, compression="zstd", compression_level=1) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, use_threads=False)
            at = table.column("row").to_numpy() - 1
            columns = [*table.columns, pa.array(from_source[at]), pa.array(from_row[at])]
            writer.write_table(pa.Table.from_arrays(columns, schema=layout))
