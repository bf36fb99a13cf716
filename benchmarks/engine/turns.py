"""Sides that take turns: each is a process that trains a few steps when told to and waits in between.

Loading and the first step are over before the first measured turn. Because the turns are interleaved
(A B C A B C ..), whatever else keeps the machine busy slows all of them alike, and ratios stay honest.

The child says a JSON object a line: `{"ready": true}`, `{"step": 3, "seconds": 2.1}`, last `{"done": {..}}`.
The parent answers with a number of steps a line.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Turns:
    """The child's end. Made before anything that prints is imported: stdout belongs to the protocol."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._say = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._allowed = 0
        self._began = 0.0

    def wait(self) -> None:
        """Say that everything is loaded, and wait for the first turn."""
        self._tell({"ready": True})
        self._await_turn()

    def step(self, number: int) -> None:
        """Report step `number` (from 1); it took the time since the last one, or since the turn was given."""
        now = time.monotonic()
        self._tell({"step": number, "seconds": now - self._began})
        self._allowed -= 1
        if self._allowed <= 0 and number < self._total:
            self._await_turn()
        self._began = time.monotonic()

    def done(self, **facts: Any) -> None:
        self._tell({"done": facts})

    def _tell(self, message: dict[str, Any]) -> None:
        self._say.write(json.dumps(message) + "\n")

    def _await_turn(self) -> None:
        line = sys.stdin.readline()
        if not line:
            sys.exit("The benchmark that started this process is gone.")
        self._allowed = int(line)
        self._began = time.monotonic()


@dataclass
class Side:
    """The parent's end of one child."""

    name: str
    process: "subprocess.Popen[str]"
    log: Path
    seconds: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def until_ready(self) -> None:
        self._read("ready")

    def take(self, steps: int) -> list[float]:
        """Let the child train `steps` steps. Returns the seconds of each."""
        self._stdin().write(f"{steps}\n")
        self._stdin().flush()
        for _ in range(steps):
            self.seconds.append(self._read("step")["seconds"])
        return self.seconds[len(self.seconds) - steps :]

    def finish(self) -> None:
        self.facts = self._read("done")["done"]
        self.process.wait(timeout=120)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=30)

    def _stdin(self) -> Any:
        return self.process.stdin

    def _read(self, wanted: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        message: dict[str, Any] = json.loads(line) if line else {}
        if wanted not in message:
            tail = "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
            raise SystemExit(f"{self.name} ended without saying {wanted!r}. The end of {self.log}:\n{tail}")
        return message


def start(
    name: str, python: Path | str, module: str, arguments: Sequence[str], threads: int, folder: Path
) -> Side:
    """Start `python -m module` in the checkout's root; what it prints by itself goes to `folder`/NAME.log."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment = {**os.environ, **quiet, "OMP_NUM_THREADS": str(threads)}
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [str(python), "-m", module, *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            bufsize=1,
        )
    return Side(name, process, log)


def peak_resident_bytes() -> int:
    """Most memory this process ever held resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
