"""The check of a whole dataset file: one pass, streaming; a report, and the good rows normalised."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workers.contract import Problem, Reading, ValidateSpec, ValidationReport
from workers.contract.data import storable
from workers.data.batches import first_rows
from workers.data.doctor import diagnose, merged_counts
from workers.data.elsewhere import RowIndex
from workers.data.figures import DISTINCT_ANSWERS, MAX_FIELDS, PLACES, SAMPLES, Found, find
from workers.data.near import NearDuplicates, groups
from workers.data.normalised import RowsWriter
from workers.data.overlap import OverlapTally, Sides, index_of
from workers.data.readers import Limits, Source, Unreadable, open_source
from workers.data.readers.opening import open_lines
from workers.data.shapes import recognise
from workers.data.spread import spread, usual_helpers

PROGRESS_SECONDS = 0.5
LARGE_FILE = 16 * 1024**2
"""From this size on the work is spread over processes."""
MAX_IGNORED = 100
Numbers = NDArray[np.int64]
PREVIEW_ROWS, PREVIEW_CELLS, PREVIEW_CHARACTERS = 5, 100, 300
Progress = Callable[[int], None]


class _Tally:
    """The figures of the file so far."""

    def __init__(self, spec: ValidateSpec, rows_file: Path | None) -> None:
        self.spec = spec
        self.total = Found()
        self.keys: list[Numbers] = []
        self.numbers: list[Numbers] = []
        self.near = NearDuplicates()
        self.writer = RowsWriter(rows_file) if rows_file else None
        self.overlaps = [OverlapTally(other) for other in spec.others]
        self.sides = Sides()

    def add(self, found: Found) -> None:
        total = self.total
        for name in ("rows", "valid", "turns", "characters", "with_reasoning", "leading_space", "control"):
            setattr(total, name, getattr(total, name) + getattr(found, name))
        total.long_answers += found.long_answers
        total.json_answers += found.json_answers
        total.other_answers = [*total.other_answers, *found.other_answers][:PLACES]
        total.residue += found.residue
        total.lengths += found.lengths
        total.scripts.update(found.scripts)
        total.personal.update(found.personal)
        if len(total.answers) + len(found.answers) > DISTINCT_ANSWERS:
            total.long_answers += sum(n for answer, n in found.answers.items() if answer not in total.answers)
        merged_counts(total.answers, found.answers, DISTINCT_ANSWERS)
        merged_counts(total.fields, found.fields, MAX_FIELDS)
        total.samples = [*total.samples, *found.samples][:SAMPLES]
        total.residue_places = [*total.residue_places, *found.residue_places][:PLACES]
        for kind, places in found.personal_places.items():
            total.personal_places[kind] = [*total.personal_places.get(kind, []), *places][:PLACES]
        for overlap, shared in zip(self.overlaps, found.shared, strict=False):
            overlap.add(shared)
        self.sides.merge(found.sides)
        self._problems(found)
        self._good_rows(found)

    def _problems(self, found: Found) -> None:
        """At most `max_problems` of each code are listed, and all are counted."""
        total, most = self.total, self.spec.max_problems
        for kept, counts, problems, more in (
            (total.errors, total.error_counts, found.errors, found.error_counts),
            (total.warnings, total.warning_counts, found.warnings, found.warning_counts),
        ):
            room = {code: most - counts[code] for code in more}
            for problem in problems:
                if room[problem.code] > 0:
                    room[problem.code] -= 1
                    kept.append(problem)
            counts.update(more)
        for name, number in found.ignored.items():
            if name not in total.ignored and len(total.ignored) < MAX_IGNORED:
                total.ignored[name] = number
                message = "This field does not reach the model. It is kept with the row where it can be."
                self.warn(Problem(row=number, field=name[:100], code="ignored_field", message=message))

    def _good_rows(self, found: Found) -> None:
        self.keys.append(found.keys)
        self.numbers.append(found.numbers)
        if found.signatures is not None:
            self.near.add(found.signatures)
        if self.writer is not None and found.table is not None:
            self.writer.write(found.table)

    def _forget(self, code: str) -> None:
        self.total.errors = [problem for problem in self.total.errors if problem.code != code]
        del self.total.error_counts[code]

    def error(self, problem: Problem) -> None:
        self.total.error_counts[problem.code] += 1
        self.total.errors.append(problem)

    def warn(self, problem: Problem) -> None:
        self.total.warning_counts[problem.code] += 1
        if self.total.warning_counts[problem.code] <= self.spec.max_problems:
            self.total.warnings.append(problem)

    def repeats(self, numbers: Numbers) -> int:
        """Rows that occurred before; each is a warning that names the first."""
        keys = np.concatenate([*self.keys, np.zeros(0, dtype=np.int64)])
        self.keys.clear()
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        rows = order[1:][ordered[1:] == ordered[:-1]]
        del ordered  # of twenty million rows each of these takes 160 MB
        rows.sort()
        for index in rows[: self.spec.max_problems].tolist():
            first = order[np.searchsorted(keys, keys[index], sorter=order)]
            message = (
                f"This row is the same as row {numbers[first]}. Remove one unless it should count twice."
            )
            self.warn(Problem(row=int(numbers[index]), field="", code="duplicate_row", message=message))
        if len(rows):
            self.total.warning_counts["duplicate_row"] = len(rows)
        return len(rows)

    def end_of_file(self, reading: Reading | None) -> None:
        if self.total.rows == 0 and not self.total.errors:
            message = "The file is empty. Put one example in each row."
            self.error(Problem(row=0, field="", code="empty_file", message=message))
        elif self.total.valid == 0 and self.total.rows:
            message = "No row of this file can be trained on. The other errors say why."
            if reading is not None and reading.mapping is None:
                message = (
                    "It is not clear which fields hold question and answer. Say how to read the columns."
                )
                self._forget("no_messages")  # of every row, where one sentence says it
            self.error(Problem(row=0, field="", code="nothing_trainable", message=message))

    def report(self, reading: Reading | None, seconds: Callable[[], float]) -> ValidationReport:
        total = self.total
        numbers = np.concatenate([*self.numbers, np.zeros(0, dtype=np.int64)])
        self.numbers.clear()
        repeats = self.repeats(numbers)
        roots = self.near.roots()
        near, alike = groups(roots, numbers)
        overlap, split = [each.result() for each in self.overlaps], self.spec.split
        if split is not None and len(numbers):
            overlap.append(self.sides.overlap(numbers, roots))
        doctor = diagnose(
            total,
            repeats=repeats,
            near=max(0, near - repeats),
            groups=alike,
            near_checked=self.spec.near_duplicates and self.near.complete,
            overlap=overlap,
            split=self.sides.counts(split) if split is not None else None,
        )
        return ValidationReport(
            rows=total.rows,
            valid=total.valid,
            errors=total.errors,
            warnings=sorted(total.warnings, key=lambda problem: problem.row),
            error_count=total.error_counts.total(),
            warning_count=total.warning_counts.total(),
            error_counts=dict(total.error_counts),
            warning_counts=dict(total.warning_counts),
            with_reasoning=total.with_reasoning,
            turns=total.turns,
            characters=total.characters,
            reading=reading,
            doctor=doctor,
            samples=total.samples,
            seconds=round(seconds(), 3),
            peak_rss_bytes=peak_rss_bytes(),
        )


def validate(
    path: Path,
    spec: ValidateSpec,
    on_progress: Progress | None = None,
    rows_file: Path | None = None,
    processes: int = 0,
    others: Sequence[Path] = (),
) -> ValidationReport:
    """Check every row of `path` in one pass. `on_progress` is told the rows read, about twice a second.

    The good rows are written to `rows_file` in the normalised layout; the file is there even when there are
    none. `processes`: how many share the work; 0 means as many as this machine has use for.
    `others`: the files that `spec.others` speaks of.
    Raises OSError when the file cannot be read; everything that is wrong inside it is in the report.
    """
    start = time.monotonic()
    tally = _Tally(spec, rows_file)
    reading: Reading | None = None
    source: Source | None = None
    try:
        source = _open(path, spec)
        reading = _read_like(source, spec)
        processes = processes or (usual_helpers() if path.stat().st_size >= LARGE_FILE else 1)
        work = partial(
            find,
            spec=spec,
            mapping=reading.mapping,
            samples=SAMPLES,
            table=rows_file is not None,
            others=_indexes(others, spec),
        )
        _pass(spread(work, source.batches(), processes), tally, on_progress)
    except Unreadable as error:
        tally.error(Problem(row=0, field="", code=error.code, message=error.message, source=error.source))
    finally:
        if tally.writer is not None:
            tally.writer.close()
    tally.end_of_file(reading)
    for code, message in source.notes.items() if source is not None else ():
        tally.warn(Problem(row=0, field="", code=code, message=message))
    return tally.report(reading, lambda: time.monotonic() - start)


def _indexes(others: Sequence[Path], spec: ValidateSpec) -> list[RowIndex]:
    """Made before the helpers are forked, which share them."""
    found: list[RowIndex] = []
    for path, other in zip(others, spec.others, strict=True):
        try:
            found.append(index_of(path, other, _limits(spec), near=spec.near_duplicates))
        except Unreadable as error:
            where = f"The rows to compare with ({other.name}) cannot be read: {error.message}"
            raise Unreadable(error.code, where, error.source) from None
    return found


def _limits(spec: ValidateSpec) -> Limits:
    return Limits(row_bytes=spec.max_row_bytes, unpacked_bytes=spec.unpacked_bytes)


def _pass(results: Iterator[Found], tally: _Tally, on_progress: Progress | None) -> None:
    told = time.monotonic()
    for found in results:
        tally.add(found)
        if on_progress is not None and time.monotonic() - told >= PROGRESS_SECONDS:
            told = time.monotonic()
            on_progress(tally.total.rows)
    if on_progress is not None:
        on_progress(tally.total.rows)


def _open(path: Path, spec: ValidateSpec) -> Source:
    limits = _limits(spec)
    return open_source(path, limits) if spec.format == "auto" else open_lines(path, limits)


def _read_like(source: Source, spec: ValidateSpec) -> Reading:
    """How the file is read: as a person says, or as its first rows look."""
    try:
        rows = first_rows(source, spec.max_row_bytes)
    except Unreadable:
        rows = []  # the pass over the whole file says where it ends
    columns = list(dict.fromkeys(key for row in rows for key in row))[:PREVIEW_CELLS]
    return Reading(
        format=source.format,
        encoding=source.encoding,
        delimiter=source.delimiter,
        mapping=spec.mapping or recognise(rows),
        recognised=spec.mapping is None,
        columns=[_storable(name) for name in columns],
        preview=[
            {_storable(name): _cell(row.get(name)) for name in columns if name in row}
            for row in rows[:PREVIEW_ROWS]
        ],
    )


def _cell(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return _storable(text[:PREVIEW_CHARACTERS]) + ("…" if len(text) > PREVIEW_CHARACTERS else "")


def _storable(text: str) -> str:
    return storable(text[:PREVIEW_CHARACTERS])


def failed_report(code: str, message: str, *, rows: int, seconds: float) -> ValidationReport:
    """The report of a check that could not be finished: one error about the file as a whole."""
    return ValidationReport(
        rows=rows,
        valid=0,
        errors=[Problem(row=0, field="", code=code, message=message)],
        warnings=[],
        error_count=1,
        warning_count=0,
        error_counts={code: 1},
        seconds=round(seconds, 3),
        peak_rss_bytes=peak_rss_bytes(),
    )


def peak_rss_bytes() -> int:
    """Peak resident memory of this process since it began its program.

    Not `ru_maxrss`: that one starts at the size of the process that forked this one.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
