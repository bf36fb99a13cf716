"""The check of a whole dataset file: one pass, streaming, a report at the end."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from workers.contract import Problem, ValidateSpec, ValidationReport
from workers.data.chat import Row, canonical
from workers.data.checks import CheckedLine, check_line
from workers.data.lines import Line, read_lines

SAMPLES = 5
SAMPLE_CHARACTERS = 20_000
"""A longer row is not shown as a sample."""
REMEMBERED_ROWS = 5_000_000
"""Rows that are compared to find duplicates: about 80 bytes of memory each."""
PROGRESS_SECONDS = 0.5


class _Tally:
    """What has been seen so far; one method per thing that can be seen."""

    def __init__(self, spec: ValidateSpec) -> None:
        self.spec = spec
        self.rows = self.valid = self.with_reasoning = self.turns = self.characters = 0
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []
        self.error_counts: Counter[str] = Counter()
        self.warning_count = 0
        self.samples: list[dict[str, object]] = []
        self.seen: dict[bytes, int] = {}
        self.ignored: set[str] = set()

    def line(self, line: Line) -> None:
        self.rows += 1
        checked = check_line(line, self.spec.max_row_bytes)
        for problem in checked.errors:
            self.error(problem)
        for problem in checked.warnings:
            self.warn(problem)
        if checked.row is not None:
            self.good_row(checked.row, checked)

    def good_row(self, row: Row, checked: CheckedLine) -> None:
        self.valid += 1
        messages = row["messages"]
        self.turns += sum(message["role"] == "assistant" for message in messages)
        self.with_reasoning += "reasoning_content" in messages[-1]
        size = sum(
            len(message["content"]) + len(message.get("reasoning_content", "")) for message in messages
        )
        self.characters += size
        if len(self.samples) < SAMPLES and size <= SAMPLE_CHARACTERS:
            self.samples.append(dict(row))
        for name in checked.ignored:
            self.ignored_field(name, checked.number)
        self.duplicate(row, checked.number)

    def ignored_field(self, name: str, number: int) -> None:
        """Said once per field, not once per row. Beyond a hundred names they are data, not columns."""
        if name not in self.ignored and len(self.ignored) < 100:
            self.ignored.add(name)
            self.warn(
                Problem(
                    row=number,
                    field=name[:100],
                    code="ignored_field",
                    message="This field is not used. It is kept in the file and does not reach the model.",
                )
            )

    def duplicate(self, row: Row, number: int) -> None:
        digest = hashlib.blake2b(canonical(row), digest_size=12).digest()
        first = self.seen.get(digest)
        if first is not None:
            message = f"This row is the same as row {first}. Remove one unless it should count twice."
            self.warn(Problem(row=number, field="", code="duplicate_row", message=message))
        elif len(self.seen) < REMEMBERED_ROWS:
            self.seen[digest] = number

    def error(self, problem: Problem) -> None:
        self.error_counts[problem.code] += 1
        if len(self.errors) < self.spec.max_problems:
            self.errors.append(problem)

    def warn(self, problem: Problem) -> None:
        self.warning_count += 1
        if len(self.warnings) < self.spec.max_problems:
            self.warnings.append(problem)

    def end_of_file(self, first_byte: bytes) -> None:
        if self.rows == 0:
            message = "The file is empty. Write one JSON object per line."
            self.error(Problem(row=0, field="", code="empty_file", message=message))
        elif self.valid == 0:
            message = "No row of this file can be trained on."
            if first_byte == b"[":
                message += " It looks like one JSON list: write each of its objects on a line of its own."
            else:
                message += " The other errors say why."
            self.error(Problem(row=0, field="", code="nothing_trainable", message=message))

    def report(self, seconds: float) -> ValidationReport:
        return ValidationReport(
            rows=self.rows,
            valid=self.valid,
            errors=self.errors,
            warnings=self.warnings,
            error_count=self.error_counts.total(),
            warning_count=self.warning_count,
            error_counts=dict(self.error_counts),
            with_reasoning=self.with_reasoning,
            turns=self.turns,
            characters=self.characters,
            samples=self.samples,
            seconds=round(seconds, 3),
            peak_rss_bytes=peak_rss_bytes(),
        )


def validate(
    path: Path, spec: ValidateSpec, on_progress: Callable[[int], None] | None = None
) -> ValidationReport:
    """Check every row of `path` in one pass. `on_progress` is told the rows read, about twice a second.

    Raises OSError when the file cannot be read; everything that is wrong inside it is in the report.
    """
    start = told = time.monotonic()
    tally = _Tally(spec)
    first_byte = b""
    for line in read_lines(path, spec.max_row_bytes):
        if line.is_blank:
            continue
        first_byte = first_byte or line.data.lstrip()[:1]
        tally.line(line)
        if on_progress is not None and time.monotonic() - told >= PROGRESS_SECONDS:
            told = time.monotonic()
            on_progress(tally.rows)
    tally.end_of_file(first_byte)
    if on_progress is not None:
        on_progress(tally.rows)
    return tally.report(time.monotonic() - start)


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


def report_json(report: ValidationReport) -> str:
    """The report on one line."""
    return json.dumps(report.model_dump(mode="json"), ensure_ascii=False)
