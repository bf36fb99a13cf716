"""What runs now, on disk: a person finds a process by name, and the next start finds what a crash left."""

import json
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from stillhouse.embedded.home import Home, write_private
from stillhouse.embedded.process import Process, is_zombie, kill_session, start_time

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
GRACE_SECONDS = 10.0


def record(home: Home, processes: Iterable[Process]) -> None:
    """Write `processes.json` (name -> pid, for people) and `run.json` (start times, for `end_leftovers`)."""
    running = {process.program.name: process.pid for process in processes if process.running}
    started = {name: {"pid": pid, "started": start_time(pid)} for name, pid in running.items()}
    write_private(home.path / "processes.json", json.dumps(running, indent=1))
    write_private(
        home.path / "run.json", json.dumps({"boot": BOOT_ID.read_text().strip(), "processes": started})
    )


def forget(home: Home) -> None:
    """After a clean stop: nothing runs."""
    for name in ("processes.json", "run.json"):
        (home.path / name).unlink(missing_ok=True)


def end_leftovers(home: Home) -> list[str]:
    """End what an earlier supervisor of this home left running; return the names. The caller holds the lock.

    A process is ours only if its pid and its start time are the recorded ones (a pid alone may be a
    stranger's by now), or if it belongs to the session that such a process opened.
    """
    try:
        run = json.loads((home.path / "run.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    ended = []
    if run["boot"] == BOOT_ID.read_text().strip():
        for name, entry in run["processes"].items():
            if entry["started"] is not None and _end(name, entry["pid"], entry["started"]):
                ended.append(name)
    forget(home)
    return ended


def _end(name: str, pid: int, started: int) -> bool:
    found = start_time(pid) == started
    if found:
        # Postgres takes SIGTERM for "when the last session is over"; SIGINT means now, and flushes.
        os.kill(pid, signal.SIGINT if name == "postgres" else signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while start_time(pid) == started and time.monotonic() < deadline:
            time.sleep(0.1)
    if start_time(pid) not in (None, started):
        return found  # the number belongs to a stranger now, and with it the session
    return kill_session(pid, started=started) or found


def clear_dead_lock(data: Path, *, patience: float = GRACE_SECONDS) -> None:
    """Remove Postgres's lock file where its owner is dead and only waits for its parent to notice.

    Postgres takes such a zombie for a living server and does not start; and the first process of a container
    may notice late, or never. Nothing happens while any process works in the data folder.
    """
    lock = data / "postmaster.pid"
    try:
        pid = int(lock.read_text(encoding="utf-8").split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return
    deadline = time.monotonic() + patience
    while is_zombie(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    if is_zombie(pid) and not _works_in(data):
        lock.unlink(missing_ok=True)


def _works_in(folder: Path) -> bool:
    """Whether the working folder of any process is this one, as every process of Postgres has it."""
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if entry.resolve() == folder.resolve():
                return True
        except OSError:
            continue
    return False
