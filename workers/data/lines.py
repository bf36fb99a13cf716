"""Lines of a stream of any size, in memory bounded by the longest line that is allowed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pickle import PickleBuffer
from typing import BinaryIO, NamedTuple, SupportsIndex

BLOCK_BYTES = 2 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Line(NamedTuple):
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


@dataclass(frozen=True, slots=True)
class LineBlock:
    """Whole lines that follow each other, as they stand in the file; or one line too long to be held."""

    number: int
    """Of the first line."""
    data: bytes
    source: str = ""
    """The file inside an archive."""
    skipped: int = 0
    """Bytes of the one line that was not held."""
    rows: int = 1
    """Lines, blank ones included."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[object, ...]:
        """Its bytes on their own, which other processes then share (see `workers.data.spread`)."""
        data = PickleBuffer(self.data) if int(protocol) >= 5 else self.data
        return LineBlock, (self.number, data, self.source, self.skipped, self.rows)

    def lines(self, max_bytes: int) -> Iterator[Line]:
        """The lines. A carriage return before the line feed belongs to the line end.

        Only a line feed ends a line: the other separators that Unicode knows may stand inside a JSON string.
        """
        if self.skipped:
            yield Line(self.number, b"", self.skipped, too_long=True)
            return
        for number, data in enumerate(self.data.removesuffix(b"\n").split(b"\n"), start=self.number):
            line = data.removesuffix(b"\r")
            if len(line) > max_bytes:
                yield Line(number, b"", len(line), too_long=True)
            else:
                yield Line(number, line, len(line))


def read_blocks(
    file: BinaryIO, max_bytes: int, source: str = "", block_bytes: int = BLOCK_BYTES
) -> Iterator[LineBlock]:
    """Yield `file` in blocks of whole lines; a byte order mark at the start is dropped.

    A line longer than `max_bytes` is counted and skipped, never held in memory.
    """
    number, first = 1, True
    rest, ahead = b"", b""
    while data := ahead or file.read(block_bytes):
        ahead = b""
        if first:
            data, first = data.removeprefix(BYTE_ORDER_MARK), False
        end = data.rfind(b"\n") + 1
        if end:
            lines = data.count(b"\n")
            yield LineBlock(number, b"".join((rest, memoryview(data)[:end])), source, rows=lines)
            number += lines
            rest = data[end:]
        elif len(rest) + len(data) > max_bytes + 1:
            size, ahead = _skip_line(file, len(rest) + len(data))
            yield LineBlock(number, b"", source, skipped=size)
            number, rest = number + 1, b""
        else:
            rest += data
    if rest:
        yield LineBlock(number, rest, source)


def _skip_line(file: BinaryIO, size: int) -> tuple[int, bytes]:
    """Bytes up to the next line feed, which is consumed but not counted, and what was read beyond it."""
    while data := file.read(BLOCK_BYTES):
        end = data.find(b"\n")
        if end >= 0:
            return size + end, data[end + 1 :]
        size += len(data)
    return size, b""
