"""A worker for `benchmarks/jobs.py`: the real one, but its trainer is `benchmarks.jobs_child` (a fake GPU).

It also writes down how long every claim took, in milliseconds, into WORK_DIR/claims.
"""

import time
from typing import Any

from workers.runtime import process
from workers.runtime.app import app, settings
from workers.runtime.client import WorkerClient
from workers.wire.api import Refused

__all__ = ["app"]

process.CHILD_MODULE = "benchmarks.jobs_child"
_claim = WorkerClient.claim


def _timed(self: WorkerClient, *arguments: Any) -> Any:
    began, how = time.monotonic(), "won"
    try:
        return _claim(self, *arguments)
    except Refused:
        how = "refused"
        raise
    finally:
        with (settings.work_dir / "claims").open("a", encoding="ascii") as lines:
            lines.write(f"{how} {(time.monotonic() - began) * 1000:.3f}\n")


WorkerClient.claim = _timed  # type: ignore[method-assign, assignment]
