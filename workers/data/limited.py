"""The check in a child process that cannot take the machine down with it, whatever the file holds."""

import ctypes
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
PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def validate_in_child(
    path: Path, spec: ValidateSpec, on_progress: Callable[[int], None] | None = None
) -> ValidationReport:
    """Like `validate`, under the memory and time limits of `spec`; reaching one is an error of the report."""
    start = time.monotonic()
    rows = 0
    report: ValidationReport | None = None
    command = [
        sys.executable,
        "-m",
        "workers.data.limited",
        str(path.resolve()),
        spec.model_dump_json(),
        str(os.getpid()),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=PACKAGE_ROOT, text=True, encoding="utf-8"
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
        return report
    code, message = _why_it_ended(child.returncode, spec, timed_out=time.monotonic() - start >= spec.seconds)
    return failed_report(code, message, rows=rows, seconds=time.monotonic() - start)


def _why_it_ended(returncode: int, spec: ValidateSpec, *, timed_out: bool) -> tuple[str, str]:
    smaller = "Split the file into smaller ones."
    if timed_out or returncode == -signal.SIGXCPU:
        return "time_limit", f"The check took longer than {spec.seconds} seconds and was stopped. {smaller}"
    if returncode == EXIT_OUT_OF_MEMORY:
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
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _child(path: Path, spec: ValidateSpec, parent: int) -> int:
    """Print the rows read, a number a line, then the report as one line of JSON."""
    limit_this_process(spec, parent)
    try:
        if not path.is_file():
            return EXIT_UNREADABLE
        report = validate(path, spec, on_progress=lambda rows: print(rows, flush=True))
        print(report_json(report), flush=True)
    except MemoryError:
        return EXIT_OUT_OF_MEMORY
    except OSError:
        return EXIT_UNREADABLE
    return 0


if __name__ == "__main__":
    sys.exit(_child(Path(sys.argv[1]), ValidateSpec.model_validate_json(sys.argv[2]), int(sys.argv[3])))
