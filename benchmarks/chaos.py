"""The faults of tests/chaos, round after round: what each one cost, and whether anything was lost or doubled.

Each round is a pytest session of its own, on servers of its own; with `--together` all of them are one
session, which spares the start of everything. Ends with one JSON line.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report import Line  # noqa: E402

Row = Mapping[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="", help="pytest's -k: some of the faults")
    parser.add_argument("--together", action="store_true", help="every fault so often in one session")
    chosen = parser.parse_args()
    sessions, times = (1, chosen.rounds) if chosen.together else (chosen.rounds, 1)
    line = Line("chaos")
    rows: list[Row] = []
    failures: dict[str, int] = defaultdict(int)
    began = time.monotonic()
    for number in range(1, sessions + 1):
        found, failed = one_session(chosen.only, times)
        rows += found
        for fault in failed:
            failures[fault] += 1
        minutes = (time.monotonic() - began) / 60
        print(
            f"session {number}: {len(found)} runs counted, {len(failed)} tests failed, {minutes:.0f} min",
            flush=True,
        )
    summary = [summed_up(fault, group) for fault, group in by_fault(rows).items()]
    print("\n".join(table(summary)))
    line.end({"rounds": chosen.rounds, "failed_tests": failures, "faults": summary})
    return 1 if failures else 0


def one_session(only: str, times: int) -> tuple[list[Row], list[str]]:
    """The figures of one session with every fault so many times, and the names of its tests that failed."""
    with tempfile.TemporaryDirectory(prefix="stillhouse-chaos-") as folder:
        file = Path(folder) / "figures.jsonl"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rf", "tests/chaos"]
        ended = subprocess.run(
            [*command, *(["-k", only] if only else [])],
            cwd=ROOT,
            env={**os.environ, "CHAOS_FIGURES": str(file), "CHAOS_ROUNDS": str(times), "COLUMNS": "300"},
            capture_output=True,
            text=True,
            check=False,
        )
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    said = [line for line in ended.stdout.splitlines() if line.startswith("FAILED")]
    print("\n".join(said))
    failed = [line.split("::", 1)[-1].split(" ")[0] for line in said]
    if ended.returncode not in (0, 1):
        raise SystemExit(ended.stdout[-2000:] + ended.stderr[-2000:])
    return [json.loads(line) for line in lines], failed


def by_fault(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["fault"]].append(row)
    return groups


def summed_up(fault: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Median and worst of seconds to notice and of steps done again; sums of what must be none."""
    noticed = [row["noticed"] for row in rows if row["noticed"] is not None]
    again = [row["lost_steps"] for row in rows if row["lost_steps"] is not None]
    return {
        "fault": fault,
        "runs": len(rows),
        "noticed_seconds": [round(statistics.median(noticed), 1), round(max(noticed), 1)]
        if noticed
        else None,
        "steps_again": [statistics.median(again), max(again)] if again else None,
        "duplicates": sum(row["duplicates"] for row in rows),
        "losses": sum(row["losses"] for row in rows),
    }


def table(summary: Iterable[Mapping[str, Any]]) -> list[str]:
    """For benchmarks/README.md."""
    lines = [
        "| fault | runs | noticed: median, worst (s) | steps again: median, worst | doubled | lost |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in summary:
        noticed, again = (
            " / ".join(f"{value:g}" for value in row[name]) if row[name] else "-"
            for name in ("noticed_seconds", "steps_again")
        )
        cells = (row["fault"], row["runs"], noticed, again, row["duplicates"], row["losses"])
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
