"""Whether this worker can keep what a job makes. One that cannot takes no job: it would fail one after the
other, and be idle again at once."""

import os
import tempfile
from pathlib import Path

from workers.runtime.folder import JOBS
from workers.runtime.outcome import FULL

PROBE_BYTES = 1024 * 1024


def trouble_with(work_dir: Path) -> str:
    """What is wrong with WORK_DIR and what to do, for a person; empty when it can be written to."""
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        jobs = work_dir / JOBS
        with tempfile.TemporaryFile(dir=jobs if jobs.exists() else work_dir) as probe:
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
    except OSError as error:
        if error.errno in FULL:
            return (
                "The disk of its WORK_DIR is full. Free space there or give it a larger one; it then takes "
                "jobs again by itself within a minute."
            )
        why = os.strerror(error.errno) if error.errno else type(error).__name__
        return (
            f"It cannot write to its WORK_DIR ({why}). Mend that disk or give it another WORK_DIR; it then "
            "takes jobs again by itself within a minute."
        )
    return ""
