"""The job's folder: locked while an attempt works in it, kept between attempts on the same host."""

import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)

JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
KEPT_SECONDS = 3 * 24 * 3600
"""A folder nobody touched for this long holds no checkpoint worth waiting for."""
LOCK = "lock"
JOBS = "jobs"
"""Folder in WORK_DIR with a folder for each job."""


class FolderBusy(Exception):
    """Another attempt of the job still works in its folder."""


class JobFolder:
    """WORK_DIR/jobs/<job id>, held by an exclusive lock that the kernel drops when the process dies."""

    def __init__(self, work_dir: Path, job: str) -> None:
        if not JOB_ID.fullmatch(job):
            raise ValueError("a job id holds letters, digits, - and _ only")
        self.path = work_dir / JOBS / job
        self._lock: int | None = None

    @property
    def lock(self) -> int:
        """File descriptor of the lock.

        The child inherits it, so the folder is free only when both are gone.
        """
        if self._lock is None:
            raise ValueError("the folder is not held")
        return self._lock

    def __enter__(self) -> Self:
        self.acquire(0.0, lambda: None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self, patience: float, check: Callable[[], None]) -> None:
        """Make and lock the folder; wait up to `patience` seconds for an attempt that is being stopped."""
        deadline = time.monotonic() + patience
        while not self._try():
            check()
            if time.monotonic() >= deadline:
                raise FolderBusy(str(self.path))
            time.sleep(0.2)

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def remove(self) -> None:
        """Delete the folder while still holding its lock."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _try(self) -> bool:
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(self.path / LOCK)):
                self._lock = handle
                return True
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(handle)
        return False


def remove_old_folders(work_dir: Path, older_than: float = KEPT_SECONDS) -> list[str]:
    """Delete the job folders that nobody holds and nobody touched for `older_than` seconds; return their ids.

    Only folders that carry our lock file: anything else in WORK_DIR is somebody else's.
    """
    removed = []
    for path in sorted((work_dir / JOBS).glob("*")):
        lock = path / LOCK
        if (
            not JOB_ID.fullmatch(path.name)
            or not lock.is_file()
            or time.time() - _last_touched(path) < older_than
        ):
            continue
        folder = JobFolder(work_dir, path.name)
        try:
            with folder:
                folder.remove()
        except FolderBusy:
            continue
        removed.append(path.name)
    return removed


def _last_touched(path: Path) -> float:
    """Newest modification time in the folder, in seconds since the epoch."""
    times = [path.stat().st_mtime]
    for found in path.rglob("*"):
        try:
            times.append(found.stat().st_mtime)
        except FileNotFoundError:
            continue
    return max(times)
