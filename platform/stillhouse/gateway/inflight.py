"""The requests in flight, in a file mapped into memory: what a killed gateway leaves behind of them.

Writing here is a copy of a few bytes without a system call, so every chunk of every stream can afford it. The
kernel keeps the pages of a killed process; a machine that loses its power loses them.
"""

import json
import mmap
import os
import struct
from pathlib import Path
from typing import Self

from stillhouse.gateway.fastjson import encode_ascii

_SLOTS = 2048
_SLOT_BYTES = 1024
_HEAD = struct.Struct("<HIII")  # length of the record's line; prompt, completion and reasoning tokens so far
_COUNTS = struct.Struct("<III")
_COUNTS_AT = 2
_MAX_COUNT = 2**32 - 1


class Guard:
    """The slot of one request."""

    __slots__ = ("_at", "_memory")

    def __init__(self, memory: mmap.mmap, at: int) -> None:
        self._memory = memory
        self._at = at

    def count(self, prompt: int, completion: int, reasoning: int) -> None:
        """Keep the counts so far."""
        counts = (min(max(0, number), _MAX_COUNT) for number in (prompt, completion, reasoning))
        _COUNTS.pack_into(self._memory, self._at + _COUNTS_AT, *counts)

    def put(self, line: bytes) -> None:
        """The record's line first, its length last: a slot is empty or whole, never half."""
        start = self._at + _HEAD.size
        self._memory[start : start + len(line)] = line
        _HEAD.pack_into(self._memory, self._at, len(line), 0, 0, 0)

    def clear(self) -> None:
        _HEAD.pack_into(self._memory, self._at, 0, 0, 0, 0)


class Inflight:
    """The table of one process. Requests beyond its size are served without a guard."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._free = [Guard(memory, number * _SLOT_BYTES) for number in range(_SLOTS)]

    @classmethod
    def create(cls, path: Path) -> Self:
        """A new, empty table. Raises OSError when the disk has no room for it."""
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(file, 0, _SLOTS * _SLOT_BYTES)  # a page without a block kills us
            return cls(mmap.mmap(file, _SLOTS * _SLOT_BYTES))
        finally:
            os.close(file)

    def take(self, line: bytes) -> Guard | None:
        """A slot that holds this line until `give`."""
        if not self._free or len(line) > _SLOT_BYTES - _HEAD.size:
            return None
        guard = self._free.pop()
        guard.put(line)
        return guard

    def give(self, guard: Guard) -> None:
        guard.clear()
        self._free.append(guard)

    def close(self) -> None:
        self._memory.close()


def read_inflight(path: Path) -> list[bytes]:
    """The lines a dead process left in its table, with the counts they had come to."""
    try:
        table = path.read_bytes()
    except FileNotFoundError:
        return []
    lines = []
    for at in range(0, len(table) - _SLOT_BYTES + 1, _SLOT_BYTES):
        length, *counts = _HEAD.unpack_from(table, at)
        if not 0 < length <= _SLOT_BYTES - _HEAD.size:
            continue
        try:
            row = json.loads(table[at + _HEAD.size : at + _HEAD.size + length])
        except ValueError:
            continue
        row["prompt_tokens"], row["completion_tokens"], row["reasoning_tokens"] = counts
        lines.append(encode_ascii(row))
    return lines
