"""The check in a child process that cannot take the machine down with it, whatever the file holds."""

import contextlib
import ctypes
import errno
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from workers.contract import (
    CompareResult,
    CompareSpec,
    DeriveResult,
    DeriveSpec,
    Message,
    ValidateSpec,
    ValidationReport,
)
from workers.data.readers import Unreadable
from workers.data.validation import failed_report, validate

PR_SET_PDEATHSIG = 1
EXIT_OUT_OF_MEMORY = 70
EXIT_UNREADABLE = 71
EXIT_ORPHANED = 72
EXIT_OUTPUT_TOO_LARGE = 73
EXIT_FAILED = 74
NO_OUTPUT = 1024
"""Bytes of a file, where no file is to be written."""
CHILD_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
    "MIMALLOC_ARENA_RESERVE": "16384",
}
"""The same hashes in every process and every check; no address space set aside for what is never used; memory
of one batch is kept for the next, as the kernel takes its time to clear what it gives."""
PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class ChildFailed(Exception):
    """The work could not be done, and why, for a person; always the file's or a limit's doing."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class Limits(Protocol):
    """What every spec of work in the child says about it."""

    @property
    def memory_bytes(self) -> int: ...
    @property
    def seconds(self) -> int: ...


class Task(Message):
    """One line on the child's standard input: nothing of it is seen in a list of processes."""

    kind: Literal["validate", "derive", "compare"]
    spec: dict[str, object]
    files: dict[str, str]
    """Absolute paths of the inputs, by name."""
    out: str
    """Of `validate` the file for the good rows, or empty; of `derive` a folder."""


class Failed(Message):
    """The child's last line, where it has no result."""

    code: str
    message: str


def validate_in_child(
    path: Path,
    spec: ValidateSpec,
    on_progress: Callable[[int], None] | None = None,
    rows_file: Path | None = None,
    others: Sequence[Path] = (),
) -> ValidationReport:
    """Like `validate`, under the memory, time and output limits of `spec`; reaching one is an error.

    `rows_file` is there and whole when the report holds rows that can be trained on, and only then.
    """
    start = time.monotonic()
    report: ValidationReport | None = None
    files = {"data": path} | _others(others)
    rows = 0

    def told(count: int) -> None:
        nonlocal rows
        rows = count
        if on_progress is not None:
            on_progress(count)

    try:
        if rows_file is not None:
            rows_file.unlink(missing_ok=True)
        out = str(rows_file.resolve()) if rows_file else ""
        report = ValidationReport.model_validate_json(run_limited("validate", spec, files, out, told))
    except ChildFailed as failed:
        report = failed_report(failed.code, failed.message, rows=rows, seconds=time.monotonic() - start)
    finally:
        if rows_file is not None and (report is None or not report.valid):
            rows_file.unlink(missing_ok=True)
    return report


def _others(paths: Sequence[Path]) -> dict[str, Path]:
    return {f"other-{index}": path for index, path in enumerate(paths)}


def derive_in_child(
    spec: DeriveSpec,
    sources: Sequence[Path],
    out: Path,
    on_progress: Callable[[int], None] | None = None,
    others: Sequence[Path] = (),
) -> DeriveResult:
    """Like `derive`, under the limits of `spec`. Raises ChildFailed.

    rows.parquet is in `out` when the report holds rows that can be trained on, and only then.
    """
    files = {f"source-{index}": path for index, path in enumerate(sources)} | _others(others)
    rows_file = out / "rows.parquet"
    result: DeriveResult | None = None
    try:
        found = run_limited("derive", spec, files, str(out.resolve()), on_progress)
        result = DeriveResult.model_validate_json(found)
    finally:
        if result is None or result.report is None or not result.report.valid:
            rows_file.unlink(missing_ok=True)
    return result


def compare_in_child(
    spec: CompareSpec, before: Path, after: Path, on_progress: Callable[[int], None] | None = None
) -> CompareResult:
    """Like `compare`, under the limits of `spec`. Raises ChildFailed."""
    found = run_limited("compare", spec, {"before": before, "after": after}, "", on_progress)
    return CompareResult.model_validate_json(found)


def run_limited(
    kind: Literal["validate", "derive", "compare"],
    spec: ValidateSpec | DeriveSpec | CompareSpec,
    files: Mapping[str, Path],
    out: str,
    on_progress: Callable[[int], None] | None,
) -> str:
    """The result as JSON. Raises ChildFailed, and whatever `on_progress` raises: the child is gone then."""
    start = time.monotonic()
    task = Task(
        kind=kind,
        spec=spec.model_dump(mode="json"),
        files={name: str(path.resolve()) for name, path in files.items()},
        out=out,
    )
    last = ""
    with subprocess.Popen(
        [sys.executable, "-m", "workers.data.limited", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # allocators that give up say so there; a traceback could quote data
        cwd=PACKAGE_ROOT,
        env=os.environ | CHILD_ENVIRONMENT,
        text=True,
        encoding="utf-8",
    ) as child:
        assert child.stdout is not None and child.stdin is not None
        timer = threading.Timer(spec.seconds, child.kill)
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(task.model_dump_json())
                child.stdin.close()
            for line in child.stdout:
                if line.startswith("{"):
                    last = line
                elif on_progress is not None:
                    on_progress(int(line))
        except BaseException:
            child.kill()
            raise
        finally:
            timer.cancel()
    if child.returncode == EXIT_FAILED and last:
        failed = Failed.model_validate_json(last)
        raise ChildFailed(failed.code, failed.message)
    if child.returncode or not last:
        timed_out = time.monotonic() - start >= spec.seconds
        raise ChildFailed(*_why_it_ended(child.returncode, spec, timed_out=timed_out))
    return last


def _why_it_ended(returncode: int, spec: Limits, *, timed_out: bool) -> tuple[str, str]:
    smaller = "Split the file into smaller ones."
    if timed_out or returncode == -signal.SIGXCPU:
        return "time_limit", f"The check took longer than {spec.seconds} seconds and was stopped. {smaller}"
    if returncode == -signal.SIGXFSZ or returncode == EXIT_OUTPUT_TOO_LARGE:
        return "output_limit", f"The rows unpack to more bytes than may be written. {smaller}"
    if returncode in (EXIT_OUT_OF_MEMORY, -signal.SIGABRT, -signal.SIGSEGV):  # allocators abort when refused
        limit = spec.memory_bytes // 1024**2
        return "memory_limit", f"The check needed more than {limit} MiB of memory and was stopped. {smaller}"
    if returncode == EXIT_UNREADABLE:
        return "unreadable", "The file cannot be read. Check its path and that it is an ordinary file."
    return (
        "check_failed",
        f"The check ended unexpectedly (status {returncode}). Try again, then tell an administrator.",
    )


def limit_this_process(*, memory_bytes: int, seconds: int, output_bytes: int, parent: int) -> None:
    """Cap memory and CPU time, and die with the parent."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        # It died before the request to be told of its death.
        sys.exit(EXIT_ORPHANED)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (output_bytes, output_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _child(parent: int) -> int:
    """Print the rows read, a number a line, then the result as one line of JSON."""
    task = Task.model_validate_json(sys.stdin.buffer.read())
    gc.disable()  # rows are many small objects without cycles; looking for some takes half of the time
    try:
        if not all(Path(path).is_file() for path in task.files.values()):
            return EXIT_UNREADABLE
        result = _WORK[task.kind](task, parent)
        print(json.dumps(result.model_dump(mode="json"), ensure_ascii=False), flush=True)
    except (MemoryError, ImportError):  # a library that cannot be mapped into what is left
        return EXIT_OUT_OF_MEMORY
    except OSError as error:
        return EXIT_OUTPUT_TOO_LARGE if error.errno == errno.EFBIG else EXIT_UNREADABLE
    return EXIT_FAILED if isinstance(result, Failed) else 0


def _validate(task: Task, parent: int) -> Message:
    spec = ValidateSpec.model_validate(task.spec)
    limit_this_process(
        memory_bytes=spec.memory_bytes, seconds=spec.seconds, output_bytes=spec.output_bytes, parent=parent
    )
    others = [Path(task.files[f"other-{index}"]) for index in range(len(spec.others))]
    rows_file = Path(task.out) if task.out else None
    return validate(Path(task.files["data"]), spec, _tell, rows_file, others=others)


def _derive(task: Task, parent: int) -> Message:
    from workers.data.derive import derive  # noqa: PLC0415 - each kind loads only what it needs
    from workers.data.operations import TooManyRows  # noqa: PLC0415

    spec = DeriveSpec.model_validate(task.spec)
    limit_this_process(
        memory_bytes=spec.memory_bytes, seconds=spec.seconds, output_bytes=spec.output_bytes, parent=parent
    )
    sources = [Path(task.files[f"source-{index}"]) for index in range(len(spec.sources))]
    others = [Path(task.files[f"other-{index}"]) for index in range(len(spec.others))]
    try:
        return derive(spec, sources=sources, out=Path(task.out), on_progress=_tell, others=others)
    except Unreadable as error:
        where = f"{error.source}: " if error.source else ""
        return Failed(code=error.code, message=where + error.message)
    except TooManyRows as error:
        return Failed(code="too_many_rows", message=str(error))


def _compare(task: Task, parent: int) -> Message:
    from workers.data.compare import compare  # noqa: PLC0415

    spec = CompareSpec.model_validate(task.spec)
    limit_this_process(
        memory_bytes=spec.memory_bytes, seconds=spec.seconds, output_bytes=NO_OUTPUT, parent=parent
    )
    try:
        return compare(spec, Path(task.files["before"]), Path(task.files["after"]), _tell)
    except Unreadable as error:
        return Failed(code=error.code, message=error.message)


def _tell(rows: int) -> None:
    print(rows, flush=True)


_WORK = {"validate": _validate, "derive": _derive, "compare": _compare}

if __name__ == "__main__":
    sys.exit(_child(int(sys.argv[1])))
