"""Limits on a child that reads what a stranger wrote: address space and processor time."""

import resource
import signal
from pathlib import Path
from types import FrameType

from workers.runtime.outcome import JobFailed

GRACE = 5
"""Seconds after the warning until the kernel ends the process."""


def limit_this_process(*, memory_bytes: int, seconds: int) -> None:
    """Allow `memory_bytes` beyond what is mapped already, and `seconds` of processor time from the start.

    Out of time, the process fails in words where it is; out of memory it gets a MemoryError.
    """
    mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory_bytes, mapped + memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + GRACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def out_of_time(_signal: int, _frame: FrameType | None) -> None:
        raise JobFailed("time_limit", f"It took longer than {seconds} seconds and was stopped.", "user")

    signal.signal(signal.SIGXCPU, out_of_time)
