"""The faults of tests/chaos, round after round: what each one cost, and whether anything was lost or doubled.

    python benchmarks/chaos.py                  one round of every fault, not kept
    python benchmarks/chaos.py --rounds 20      until each fault has 20 in benchmarks/chaos.jsonl
    python benchmarks/chaos.py --rounds 0       no more of them: the table of those that there are

Rounds are kept as each one ends, whether it passed or failed, so that they add up over many calls, commits
and days; each says its commit and the machine's load. Houses that work at the same time have servers of
their own. Ends with one JSON line.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report import Line  # noqa: E402
from tests.chaos.rounds import Round, rounds_in  # noqa: E402

KEPT = ROOT / "benchmarks" / "chaos.jsonl"
AT_ONCE = 7
"""Rounds of a fault in one session: houses take a while to build, and to wait for the last one."""
BROKEN_HOUSES = 3
"""After so many failures the houses are built anew: one that a fault has broken would fail every round."""
NO_TESTS = 5
"""pytest's exit code when every fault is deselected."""
GOES_ON = (0, 1, 2, NO_TESTS)
"""All passed, some failed, too many failed."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, help="of every fault, with those in --file")
    parser.add_argument("--file", type=Path, default=KEPT)
    parser.add_argument("--houses", type=int, default=2, help="at the same time")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no more of them after that long")
    parser.add_argument("--only", default="", help="pytest's -k: some of the faults")
    chosen = parser.parse_args()
    line = Line("chaos")
    with tempfile.TemporaryDirectory(prefix="stillhouse-chaos-") as folder:
        file = chosen.file if chosen.rounds is not None else Path(folder) / "rounds.jsonl"
        wanted = 1 if chosen.rounds is None else chosen.rounds
        before, until = len(rounds_in(file)), time.monotonic() + chosen.minutes * 60
        while wanted and time.monotonic() < until:
            if not one_session(file, wanted, chosen.only, chosen.houses):
                break
        rows = rounds_in(file)
    print("\n".join(table(rows)))
    failed = [row for row in rows if not row.passed]
    for row in failed:
        print(f"failed: {row.fault}, round {row.round}, {row.commit}, load {row.load}: {row.why}")
    line.end({"rounds": len(rows), "now": len(rows) - before, "failed": len(failed)})
    return 1 if any(not row.passed for row in rows[before:]) else 0


def one_session(file: Path, wanted: int, only: str, houses: int) -> bool:
    """More rounds of the faults that have the fewest; False when none has too few."""
    had = Counter(row.test for row in rounds_in(file))
    goal = wanted if only else min(wanted, min(had.values(), default=0) + AT_ONCE)
    enough = [test for test, count in had.items() if count >= goal]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/chaos"]
    command += [f"--deselect={test}" for test in enough]
    command += ["-k", only] if only else []
    command += ["-n", str(houses), "--dist", "worksteal", f"--maxfail={BROKEN_HOUSES}"]
    told = {"CHAOS_ROUNDS": str(file), "CHAOS_WANTED": str(goal)}
    ended = subprocess.run(command, cwd=ROOT, env={**os.environ, **told}, check=False)
    if ended.returncode not in GOES_ON:
        raise SystemExit(f"pytest ended with {ended.returncode}")
    return ended.returncode != NO_TESTS


def table(rows: Iterable[Round]) -> list[str]:
    """For benchmarks/README.md: median and worst; sums of what must be none."""
    groups: dict[str, list[Round]] = defaultdict(list)
    for row in rows:
        groups[row.fault].append(row)
    lines = [
        "| fault | rounds | passed | seconds to notice | steps again | doubled | lost |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for fault, group in sorted(groups.items(), key=lambda item: item[1][0].test):
        cells = (
            fault,
            len(group),
            sum(row.passed for row in group),
            middle_and_worst([row.seconds_to_notice for row in group]),
            middle_and_worst([row.steps_lost for row in group]),
            sum(row.duplicates for row in group),
            sum(row.losses for row in group),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def middle_and_worst(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.3g} / {max(known):.3g}" if known else "-"


if __name__ == "__main__":
    sys.exit(main())
