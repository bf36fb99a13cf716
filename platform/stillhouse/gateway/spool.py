"""The ledger's records on disk, until Postgres has them: append-only segments of lines with a checksum.

Each process writes in a folder of its own below SPOOL_DIR and holds a lock on it. A folder whose lock is free
belonged to a process that is gone, and whoever takes the lock copies what is left there.
"""

import fcntl
import logging
import os
import shutil
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from stillhouse.core.ids import new_id
from stillhouse.gateway.inflight import Inflight, read_inflight

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 4 * 1024 * 1024
_LOCK, _TABLE, _SUFFIX, _NEW = "lock", "inflight", ".log", ".new-"


def _sealed(line: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(line), line)


def read_segment(path: Path) -> Iterator[bytes]:
    """The lines of a segment. One that is torn or damaged is left out and said in the log."""
    damaged = 0
    for raw in path.read_bytes().split(b"\n"):
        checksum, _, line = raw.partition(b" ")
        if line and checksum == b"%08x" % zlib.crc32(line):
            yield line
        elif raw:
            damaged += 1
    if damaged:
        logger.error("usage: %d damaged lines in %s", damaged, path.name)


def bring_to_disk(file: int) -> None:
    """Wait until the disk has the file, and close this descriptor. Blocks: call it in a thread."""
    try:
        os.fdatasync(file)
    finally:
        os.close(file)


class Spool:
    """The folder of this process. When the disk takes no more, records wait in memory, as many as may."""

    def __init__(self, home: Path, *, max_bytes: int, max_waiting: int) -> None:
        self._home = home
        self._max_bytes = max_bytes
        self._max_waiting = max_waiting
        self._segments: deque[tuple[Path, int]] = deque()
        self._file: int | None = None
        self._path = home
        self._size = self._number = 0
        self._torn = self._dirty = self._failing = False
        self.waiting: deque[bytes] = deque()
        """Lines that the disk did not take."""
        self.lost = 0
        """Lines given up: neither the disk nor Postgres took them in time."""
        self.inflight: Inflight | None = None

    def open(self) -> None:
        """Make the folder, its lock and its table. Raises OSError when SPOOL_DIR cannot be written."""
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = new_id("spool")
        new, self._folder = self._home / f"{_NEW}{name}", self._home / name
        new.mkdir(mode=0o700)
        self._lock = os.open(new / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.inflight = Inflight.create(new / _TABLE)
        new.rename(self._folder)  # nobody sees the folder before its lock is held

    def close(self) -> None:
        """Let go of the folder, which is removed when nothing is left in it."""
        self.seal()
        empty = not self._segments
        if self.inflight is not None:
            self.inflight.close()
        if empty:
            shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock)

    @property
    def failing(self) -> bool:
        """The disk does not take anything at the moment."""
        return self._failing

    @property
    def bytes_waiting(self) -> int:
        return self._size + sum(size for _, size in self._segments)

    def append(self, line: bytes) -> None:
        """Hand a line to the kernel: it outlives this process, and after `bring_to_disk` the machine."""
        try:
            self._write((b"\n" if self._torn else b"") + _sealed(line))
        except OSError as error:
            self._wait_in_memory(line, error)
            return
        self._failing = False

    def _write(self, data: bytes) -> None:
        if self._file is None:
            self._number += 1
            self._path = self._folder / f"{self._number:08}{_SUFFIX}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._file = os.open(self._path, flags, 0o600)
        self._torn = True  # until all of it is written
        written = os.write(self._file, data)
        self._size += written
        self._dirty = True
        if written < len(data):
            raise OSError(f"wrote {written} of {len(data)} bytes")
        self._torn = False
        if self._size >= SEGMENT_BYTES:
            self.seal()

    def _wait_in_memory(self, line: bytes, error: OSError) -> None:
        if not self._failing:
            logger.error("usage cannot be spooled to %s and waits in memory: %s", self._home, error)
        self._failing = True
        self.waiting.append(line)
        if len(self.waiting) > self._max_waiting:
            self.waiting.popleft()
            self._give_up(1)

    def _give_up(self, lines: int) -> None:
        self.lost += lines
        logger.error("usage records lost: %d in all, because Postgres does not take them", self.lost)

    def take_unsynced(self) -> int | None:
        """A descriptor for `bring_to_disk` of what was appended lately, or None when there is nothing.

        A copy: the segment may be sealed while a thread brings it to the disk.
        """
        if not self._dirty or self._file is None:
            return None
        self._dirty = False
        return os.dup(self._file)

    def seal(self) -> None:
        """End the segment, so that it can be copied and removed."""
        if self._file is None:
            return
        os.close(self._file)
        self._segments.append((self._path, self._size))
        self._file, self._size, self._torn = None, 0, False
        while len(self._segments) > 1 and self.bytes_waiting > self._max_bytes:
            oldest, _ = self._segments[0]
            lines = sum(1 for _ in read_segment(oldest))
            self.remove_oldest()
            self._give_up(lines)

    def oldest(self) -> Path | None:
        """The segment to copy next."""
        return self._segments[0][0] if self._segments else None

    def remove_oldest(self) -> None:
        path, _ = self._segments.popleft()
        path.unlink(missing_ok=True)

    def orphans(self) -> "Iterator[Orphan]":
        """The folders of processes that are gone. Each is locked while it is in hand."""
        for folder in sorted(self._home.iterdir()):
            if folder != self._folder and not folder.name.startswith(_NEW) and (orphan := _adopt(folder)):
                yield orphan


class Orphan:
    """A dead process's folder."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self._lock = lock

    def lines(self) -> list[bytes]:
        """Finished records first: what the table has of one that finished as well counts no more."""
        lines = [line for path in sorted(self.folder.glob(f"*{_SUFFIX}")) for line in read_segment(path)]
        return [*lines, *read_inflight(self.folder / _TABLE)]

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def release(self) -> None:
        os.close(self._lock)


def _adopt(folder: Path) -> Orphan | None:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None  # no folder of ours, or somebody else has just removed it
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (folder / _LOCK).stat().st_ino == os.fstat(lock).st_ino:
            return Orphan(folder, lock)
    except OSError:
        pass
    os.close(lock)
    return None
