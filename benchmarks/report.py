"""The line that a benchmark ends with: its figures, and what they were taken on."""

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Line:
    """Made before anything is measured: it notes the load that the machine was under then."""

    def __init__(self, benchmark: str) -> None:
        self._benchmark = benchmark
        self._load_before = _load()

    def end(self, figures: Mapping[str, Any], packages: Sequence[str] = ()) -> None:
        """Print it. `packages` are those of this environment whose versions matter."""
        line: dict[str, Any] = {
            "benchmark": self._benchmark,
            **figures,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": machine(),
            "load": {"before": self._load_before, "after": _load()},
        }
        if packages:
            line["versions"] = {name: importlib.metadata.version(name) for name in packages}
        print(json.dumps(line), flush=True)


def machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _load() -> float:
    """Mean length of the run queue over the last minute."""
    return round(os.getloadavg()[0], 1)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )
