"""The check in a child process that cannot take the machine down with it, whatever the file holds."""

import ctypes
import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from workers.contract import ValidateSpec, ValidationReport
from workers.data.validation import failed_report, report_json, validate

PR_SET_PDEATHSIG = 1
EXIT_OUT_OF_MEMORY = 70
EXIT_UNREADABLE = 71
EXIT_ORPHANED = 72
EXIT_OUTPUT_TOO_LARGE = 73
CHILD_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
}
"""The same hashes in every process and every check; no address space set aside for what is never used."""
PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def validate_in_child(
    path: Path,
    spec: ValidateSpec,
    on_progress: Callable[[int], None] | None = None,
    rows_file: Path | None = None,
) -> ValidationReport:
    """Like `validate`, under the memory, time and output limits of `spec`; reaching one is an error.

    `rows_file` is there and whole when the report holds rows that can be trained on, and only then.
    """
    start = time.monotonic()
    rows = 0
    report: ValidationReport | None = None
    if rows_file is not None:
        rows_file.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "workers.data.limited",
        str(path.resolve()),
        spec.model_dump_json(),
        str(os.getpid()),
        str(rows_file.resolve()) if rows_file else "",
    ]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # allocators that give up say so there; a traceback could quote data
        cwd=PACKAGE_ROOT,
        env=os.environ | CHILD_ENVIRONMENT,
        text=True,
        encoding="utf-8",
    ) as child:
        assert child.stdout is not None
        timer = threading.Timer(spec.seconds, child.kill)
        timer.start()
        try:
            for line in child.stdout:
                if line.startswith("{"):
                    report = ValidationReport.model_validate_json(line)
                    continue
                rows = int(line)
                if on_progress is not None:
                    on_progress(rows)
        except BaseException:
            child.kill()
            raise
        finally:
            timer.cancel()
    if report is not None and child.returncode == 0:
        if rows_file is not None and not report.valid:
            rows_file.unlink(missing_ok=True)
        return report
    if rows_file is not None:
        rows_file.unlink(missing_ok=True)
    code, message = _why_it_ended(child.returncode, spec, timed_out=time.monotonic() - start >= spec.seconds)
    return failed_report(code, message, rows=rows, seconds=time.monotonic() - start)


def _why_it_ended(returncode: int, spec: ValidateSpec, *, timed_out: bool) -> tuple[str, str]:
    smaller = "Split the file into smaller ones."
    if timed_out or returncode == -signal.SIGXCPU:
        return "time_limit", f"The check took longer than {spec.seconds} seconds and was stopped. {smaller}"
    if returncode == -signal.SIGXFSZ or returncode == EXIT_OUTPUT_TOO_LARGE:
        return "output_limit", f"The rows unpack to more than {spec.output_bytes:,} bytes. {smaller}"
    if returncode in (EXIT_OUT_OF_MEMORY, -signal.SIGABRT, -signal.SIGSEGV):  # allocators abort when refused
        limit = spec.memory_bytes // 1024**2
        return "memory_limit", f"The check needed more than {limit} MiB of memory and was stopped. {smaller}"
    if returncode == EXIT_UNREADABLE:
        return "unreadable", "The file cannot be read. Check its path and that it is an ordinary file."
    return (
        "check_failed",
        f"The check ended unexpectedly (status {returncode}). Try again, then tell an administrator.",
    )


def limit_this_process(spec: ValidateSpec, parent: int) -> None:
    """Cap memory and CPU time, and die with the parent."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        # It died before the request to be told of its death.
        sys.exit(EXIT_ORPHANED)
    resource.setrlimit(resource.RLIMIT_AS, (spec.memory_bytes, spec.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (spec.seconds, spec.seconds + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (spec.output_bytes, spec.output_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _child(path: Path, spec: ValidateSpec, parent: int, rows_file: Path | None) -> int:
    """Print the rows read, a number a line, then the report as one line of JSON."""
    limit_this_process(spec, parent)
    try:
        if not path.is_file():
            return EXIT_UNREADABLE
        report = validate(path, spec, lambda rows: print(rows, flush=True), rows_file)
        print(report_json(report), flush=True)
    except (MemoryError, ImportError):  # a library that cannot be mapped into what is left
        return EXIT_OUT_OF_MEMORY
    except OSError as error:
        return EXIT_OUTPUT_TOO_LARGE if error.errno == errno.EFBIG else EXIT_UNREADABLE
    return 0


if __name__ == "__main__":
    sys.exit(
        _child(
            Path(sys.argv[1]),
            ValidateSpec.model_validate_json(sys.argv[2]),
            int(sys.argv[3]),
            Path(sys.argv[4]) if sys.argv[4] else None,
        )
    )
