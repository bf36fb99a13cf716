"""The rounds of every fault: a JSON line each, in the file CHAOS_ROUNDS once it ended, passed or not.

A round that failed is a round: it is never taken out, or tried again in its place. One that was interrupted
has not ended, and is none.
"""

import fcntl
import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.chaos.house import Figures

ROOT = Path(__file__).resolve().parents[2]
CODE = ("platform", "workers", "tests", "manage.py")


@dataclass(frozen=True)
class Round:
    """One test of a fault: what it cost, of the runs that it counted."""

    fault: str
    test: str
    """Where it is written down: pytest's name for it."""
    round: int
    commit: str
    """With a `+` where the code was not what is committed."""
    date: str
    """When it ended, UTC."""
    load: float
    """Of the machine in the minute before."""
    seconds: float
    """All of it, the start of what the fault before had taken included."""
    seconds_to_notice: float | None
    """The longest; None when no attempt ended of it."""
    steps_lost: int | None
    """The most of a run: done and reported, and done again."""
    duplicates: int
    losses: int
    passed: bool
    why: str
    """What a failed one said."""


def rounds_in(file: Path) -> list[Round]:
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [Round(**json.loads(line)) for line in lines]


def wanted(function: str) -> range:
    """The numbers of the rounds that a test function still has to do: CHAOS_WANTED of each of its cases, less
    those that the file has; one where nobody wants a number of them."""
    most, name = os.environ.get("CHAOS_WANTED"), os.environ.get("CHAOS_ROUNDS")
    if not (most and name):
        return range(1, 2)
    had = Counter(row.test for row in rounds_in(Path(name)) if row.test.partition("[")[0] == function)
    return range(1 + min(had.values(), default=0), 1 + int(most))


def without_number(test: str) -> str:
    """pytest's name for a test, without the number of its round."""
    return re.sub(r"\[round\d+(-|\])", lambda found: "[" if found[1] == "-" else "", test)


def keep(test: str, runs: Sequence["Figures"], *, seconds: float, why: str) -> None:
    """Add a round to the file, if there is one; other sessions may do so at the same time."""
    if not (name := os.environ.get("CHAOS_ROUNDS")):
        return
    fault = test.rpartition("::")[2].removeprefix("test_").replace("_", " ")
    with Path(name).open("a", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        row = Round(
            fault=fault,
            test=test,
            round=1 + sum(row.fault == fault for row in rounds_in(Path(name))),
            commit=commit(),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            load=round(os.getloadavg()[0], 1),
            seconds=round(seconds, 1),
            seconds_to_notice=max((run.noticed for run in runs if run.noticed is not None), default=None),
            steps_lost=max((run.lost_steps for run in runs if run.lost_steps is not None), default=None),
            duplicates=sum(run.duplicates for run in runs),
            losses=sum(run.losses for run in runs),
            passed=not why,
            why=why,
        )
        stream.write(json.dumps(asdict(row)) + "\n")


@cache
def commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", *CODE) else "")
