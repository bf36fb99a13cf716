"""Lines of a file of any size, in memory bounded by the longest line that is allowed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

READ_BYTES = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the file, without its line end."""

    number: int
    """From 1; blank lines count."""
    data: bytes
    """Empty when the line was too long to be read."""
    size: int
    """Bytes in the file, line end excluded, also for a line that was too long."""
    too_long: bool = False

    @property
    def is_blank(self) -> bool:
        return not self.too_long and not self.data.strip()


def read_lines(path: Path, max_bytes: int) -> Iterator[Line]:
    """Yield the lines of `path`; one longer than `max_bytes` is counted and skipped, never held in memory.

    Only a line feed ends a line: the other separators that Unicode knows may stand inside a JSON string. A
    carriage return before it belongs to the line end. A byte order mark at the start of the file is dropped.
    """
    with path.open("rb") as file:
        number = 0
        while (line := _next_line(file, number + 1, max_bytes)) is not None:
            number += 1
            yield line


def _next_line(file: BinaryIO, number: int, max_bytes: int) -> Line | None:
    # Two bytes more than allowed leave room for the line end.
    data = file.readline(max_bytes + 2)
    if not data:
        return None
    if not data.endswith(b"\n") and len(data) == max_bytes + 2:
        return Line(number, b"", len(data) + _skip_line(file), too_long=True)
    if number == 1:
        data = data.removeprefix(BYTE_ORDER_MARK)
    data = data.removesuffix(b"\n").removesuffix(b"\r")
    if len(data) > max_bytes:
        return Line(number, b"", len(data), too_long=True)
    return Line(number, data, len(data))


def _skip_line(file: BinaryIO) -> int:
    """Bytes up to the next line feed, which is consumed but not counted."""
    skipped = 0
    while chunk := file.readline(READ_BYTES):
        if chunk.endswith(b"\n"):
            return skipped + len(chunk) - 1
        skipped += len(chunk)
    return skipped
