"""A whole run by the command that people use, beside what the estimate had said of it."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.engine.turns import ROOT
from benchmarks.engine.workload import Workload
from workers.training.estimate import estimate_run, this_machine


def whole_run(workload: Workload, base: Path, out: Path, threads: int, log: Path) -> dict[str, Any]:
    """`python -m workers train` from its start to its end: seconds and peak memory, predicted and measured.

    Raises SystemExit when the run fails.
    """
    expected = estimate_run(
        workload.spec, base=base, data=workload.data, eval_data=None, machine=this_machine()
    )
    spec = out.with_suffix(".json")
    spec.write_text(workload.spec.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "workers", "train", "--base", str(base), "--data", str(workload.data)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    begun = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [*command, "--spec", str(spec), "--out", str(out)],
            cwd=ROOT,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"The whole run failed; see {log}.")
    peak = usage.ru_maxrss * 1024
    return {
        "predicted": {"memory_bytes": expected.memory_bytes, "seconds": expected.seconds},
        "measured": {"memory_bytes": peak, "seconds": round(seconds, 1)},
        "predicted/measured": {
            "memory": round(expected.memory_bytes / peak, 3),
            "seconds": round(expected.seconds / seconds, 3),
        },
    }
