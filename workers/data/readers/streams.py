"""Byte streams with a limit on what they unpack to, and text streams turned into UTF-8."""

import codecs
import gzip
import io
import zipfile
import zlib
from collections.abc import Callable
from typing import IO, BinaryIO, cast

from workers.data.readers.source import Limits, Unreadable

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
READ = 1 << 20


class Allowance:
    """How much `packed` bytes may unpack to: the sizes that a file claims are not believed."""

    def __init__(self, packed: int, limits: Limits) -> None:
        self._most = min(limits.unpacked_bytes, max(limits.free_bytes, packed * limits.ratio))
        self._read = 0

    def take(self, count: int, name: str = "") -> None:
        """Raises Unreadable `unpacks_too_large`."""
        self._read += count
        self.check(self._read, name)

    def check(self, size: int, name: str = "") -> None:
        """The same for what a file says of itself: one that claims too much is believed."""
        if size > self._most:
            raise Unreadable(
                "unpacks_too_large",
                f"This unpacks to more than {self._most:,} bytes, far more than its size suggests. "
                "Upload it unpacked, or in parts.",
                name,
            )


class Bounded(io.RawIOBase):
    """What a stream unpacks to, refused beyond what it is allowed."""

    def __init__(self, inner: IO[bytes], *allowed: Allowance, name: str = "") -> None:
        self._inner, self._name, self._allowed = inner, name, allowed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview[int]") -> int:  # type: ignore[override]
        try:
            data = self._inner.read(min(len(buffer), READ))
        except (EOFError, OSError, zlib.error, ValueError, zipfile.BadZipFile) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise Unreadable(
                "damaged_archive",
                "The packed data is damaged or cut off. Pack the file again, or upload it unpacked.",
                self._name,
            ) from None
        for allowance in self._allowed:
            allowance.take(len(data), self._name)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._inner.close()
        super().close()


def buffered(raw: io.RawIOBase) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(raw, READ))


def unpack(file: BinaryIO, magic: bytes, packed: int, limits: Limits) -> BinaryIO:
    """The content of a gzip or Zstandard stream."""
    if magic.startswith(GZIP):
        inner: IO[bytes] = cast(IO[bytes], gzip.GzipFile(fileobj=file))
    else:
        import pyarrow as pa  # noqa: PLC0415 - only a few files need it, and it takes a while to load

        inner = cast(IO[bytes], pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"))
    return buffered(Bounded(inner, Allowance(packed, limits)))


class LineFeeds(io.RawIOBase):
    """A stream whose lines end in carriage returns alone, with line feeds in their place."""

    def __init__(self, inner: BinaryIO) -> None:
        self._inner = inner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview[int]") -> int:  # type: ignore[override]
        data = self._inner.read(len(buffer)).replace(b"\r", b"\n")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._inner.close()
        super().close()


class Recoded(io.RawIOBase):
    """A stream in another encoding as UTF-8. What means nothing there becomes U+FFFD, or half of a surrogate
    pair, which the checks of a row find."""

    def __init__(self, inner: BinaryIO, encoding: str) -> None:
        self._inner, self._rest = inner, b""
        errors = "surrogatepass" if encoding.startswith("utf-") else "replace"
        self._decode: Callable[..., str] = codecs.getincrementaldecoder(encoding)(errors).decode
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview[int]") -> int:  # type: ignore[override]
        while not self._rest and not self._ended:
            data = self._inner.read(READ // 4)
            self._ended = not data
            try:
                text = self._decode(data, not data)
            except UnicodeDecodeError:
                raise Unreadable(
                    "wrong_encoding",
                    "The text changes its encoding or is cut off half-way. Save the file as UTF-8.",
                ) from None
            self._rest = text.encode("utf-8", "surrogatepass")
        piece, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._inner.close()
        super().close()
