"""How much memory the whole embedded platform holds, measured while it works."""

import json
import threading
from pathlib import Path

from stillhouse.embedded.home import Home
from stillhouse.embedded.process import descendants

SAMPLE_SECONDS = 2.0


def resident_bytes(home: Home) -> int:
    """The platform's resident memory now, in bytes, shared pages counted once (PSS in proc(5)): every process
    of `processes.json` and what descends from it."""
    running: dict[str, int] = json.loads((home.path / "processes.json").read_text(encoding="utf-8"))
    return sum(_pss(pid) for pid in descendants(set(running.values())))


class MemoryWatch:
    """Remembers the highest `resident_bytes` between `with` and its end."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="memory")

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, resident_bytes(self.home))


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0  # it has just ended
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
