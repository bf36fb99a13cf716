"""From a path to a Source, by the file's first bytes."""

import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, cast

from workers.data.lines import read_blocks
from workers.data.normalised import is_normalised
from workers.data.readers.normals import read_normals
from workers.data.readers.parquets import read_parquet
from workers.data.readers.sniffing import HEAD, Text, sniff
from workers.data.readers.source import (
    MAX_FILES,
    Batch,
    Limits,
    Notes,
    RawRow,
    Source,
    Unreadable,
    at_most,
    in_batches,
)
from workers.data.readers.streams import GZIP, ZSTD, Allowance, Bounded, LineFeeds, Recoded, buffered, unpack
from workers.data.readers.texts import read_json_list, read_json_objects, read_table
from workers.data.readers.workbooks import read_workbook

ZIP, PARQUET, OLD_OFFICE = b"PK\x03\x04", b"PAR1", b"\xd0\xcf\x11\xe0"
ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".xlsx", ".parquet")
"""Of files in an archive. Where none ends like this, all are read; what a file is, its bytes say."""
SPOOL_BYTES = 2 * 1024**3
"""The largest workbook or Parquet file inside an archive: these need seeking, so a copy is read."""
NORMALISED = "normalised rows"
SHOWN_NAME = 120
DAMAGED = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
    OverflowError,
    OSError,
    struct.error,
    zlib.error,
)
"""What zipfile raises over a broken archive."""
Open = Callable[[], BinaryIO]


def open_source(path: Path, limits: Limits) -> Source:
    """What `path` is and how to read it. Raises Unreadable, and OSError when there is no file."""
    source = _opened(path, limits)
    return replace(source, batches=lambda: at_most(source.batches(), limits.rows))


def _opened(path: Path, limits: Limits) -> Source:
    with path.open("rb") as file:
        head = file.read(HEAD)
    if head.startswith(PARQUET):
        if is_normalised(path):
            return Source(NORMALISED, lambda: in_batches(read_normals(path)))
        return Source("Parquet", lambda: in_batches(_parquet(path, limits)))
    if head.startswith((ZIP, b"PK\x05\x06")):
        return _zipped(path, limits)
    if head.startswith((GZIP, ZSTD)):
        return _compressed(path, head[:4], limits)
    return _text_source(lambda: path.open("rb"), head, limits)


def _parquet(path: Path, limits: Limits) -> Iterator[RawRow]:
    with path.open("rb") as file:
        yield from read_parquet(file, limits)


def open_lines(path: Path, limits: Limits) -> Source:
    """`path` as JSON Lines in UTF-8, whatever it looks like."""
    source = _text_source(lambda: path.open("rb"), b"{}", limits)
    return replace(source, batches=lambda: at_most(source.batches(), limits.rows))


def _compressed(path: Path, magic: bytes, limits: Limits) -> Source:
    def opened() -> BinaryIO:
        return unpack(path.open("rb"), magic, path.stat().st_size, limits)

    with opened() as file:
        head = file.read(HEAD)
    if head.startswith((ZIP, GZIP, ZSTD, PARQUET)):
        raise _nested()
    source = _text_source(opened, head, limits)
    name = "gzip" if magic.startswith(GZIP) else "Zstandard"
    return Source(f"{source.format} in {name}", source.batches, source.encoding, source.delimiter)


def _text_source(opened: Open, head: bytes, limits: Limits, name: str = "") -> Source:
    text = sniff(head)
    if text is None:
        raise _unknown(head, name)
    if text.kind == "prose":
        raise Unreadable(
            "plain_text",
            "This is text without columns. Put one example in each row, a question and its answer, "
            "as JSON Lines, CSV or Excel.",
            name,
        )
    labels = {
        "jsonl": "JSON Lines",
        "json": "JSON list",
        "objects": "JSON objects",
        "table": "TSV" if text.delimiter == "\t" else "CSV",
    }
    encoding = {"utf-8": "UTF-8", "utf-8-sig": "UTF-8 with a byte order mark"}.get(
        text.encoding, text.encoding.replace("cp125", "Windows-125")
    )
    delimiter = text.delimiter if text.kind == "table" else ""
    return Source(labels[text.kind], lambda: _batches(opened(), text, limits, name), encoding, delimiter)


def _batches(file: BinaryIO, text: Text, limits: Limits, name: str) -> Iterator[Batch]:
    with file:
        stream = file
        if text.encoding not in ("utf-8", "utf-8-sig"):
            stream = buffered(Recoded(file, text.encoding))
        if text.line_ends == "\r":
            stream = buffered(LineFeeds(stream))
        if text.kind == "jsonl":
            yield from read_blocks(stream, limits.row_bytes, name)
        elif text.kind == "json":
            yield from in_batches(read_json_list(stream, limits, name, skip=text.skip))
        elif text.kind == "objects":
            yield from in_batches(read_json_objects(stream, limits, name))
        else:
            yield from in_batches(read_table(stream, text.delimiter, limits, name))


def _zipped(path: Path, limits: Limits) -> Source:
    """An archive of data files, or a workbook, which is one too."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            names = {info.filename for info in infos}
    except DAMAGED:
        raise Unreadable(
            "damaged_archive",
            "The ZIP file is damaged or cut off. Pack it again, or upload the file unpacked.",
        ) from None
    if len(infos) > MAX_FILES:
        raise Unreadable(
            "too_many_files", f"The archive holds {len(infos):,} files; at most {MAX_FILES:,} are read."
        )
    notes: Notes = {}
    if "[Content_Types].xml" in names and any(name.startswith("xl/") for name in names):
        return Source("Excel workbook", lambda: in_batches(_workbook(path, limits, notes)), notes=notes)
    files = [info for info in infos if _is_data(info)]
    members = [info for info in files if info.filename.lower().endswith(ENDINGS)] or files
    if other := next((info for info in files if info not in members), None):
        notes["skipped_files"] = (
            f"{len(files) - len(members):,} files of the archive are not read, such as "
            f"{_shown(other.filename)}: their names do not end like data."
        )
    if not members:
        raise Unreadable(
            "empty_archive", "The archive holds no data file. Put JSON Lines, CSV, Excel or Parquet in."
        )
    label = f"ZIP of {len(members)} file{'s' if len(members) > 1 else ''}"
    return Source(label, lambda: _members(path, members, limits, notes), notes=notes)


def _workbook(path: Path, limits: Limits, notes: Notes) -> Iterator[RawRow]:
    with path.open("rb") as file:  # given a path, openpyxl would believe its ending
        yield from read_workbook(file, limits, notes=notes)


def _is_data(info: zipfile.ZipInfo) -> bool:
    """Folders, and what operating systems leave in archives, are no data."""
    parts = PurePosixPath(info.filename).parts
    return not info.is_dir() and "__MACOSX" not in parts and bool(parts) and not parts[-1].startswith(".")


def _members(path: Path, members: list[zipfile.ZipInfo], limits: Limits, notes: Notes) -> Iterator[Batch]:
    """The rows of one member after the other; names are shown to people and never used as paths."""
    _check_apart(members)
    whole = Allowance(path.stat().st_size, limits)
    whole.check(sum(info.file_size for info in members))
    with zipfile.ZipFile(path) as archive:
        for info in members:
            name = _shown(info.filename)
            if ".." in PurePosixPath(info.filename.replace("\\", "/")).parts or info.filename.startswith("/"):
                raise Unreadable(
                    "unsafe_name", "The archive holds a file whose name leads out of it. Pack it again.", name
                )
            if info.flag_bits & 1:
                raise Unreadable(
                    "encrypted", "This file in the archive has a password. Pack it without.", name
                )
            Allowance(info.compress_size, limits).check(info.file_size, name)
            yield from _member(archive, info, name, limits, notes, whole)


def _check_apart(members: list[zipfile.ZipInfo]) -> None:
    """Members that share their bytes would unpack to the same again and again."""
    end = 0
    for info in sorted(members, key=lambda each: each.header_offset):
        if info.header_offset < end:
            raise Unreadable(
                "damaged_archive",
                "Files in the archive lie over each other. Pack it again.",
                _shown(info.filename),
            )
        end = info.header_offset + info.compress_size


def _member(
    archive: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    name: str,
    limits: Limits,
    notes: Notes,
    whole: Allowance,
) -> Iterator[Batch]:
    def opened() -> BinaryIO:
        try:
            inner = archive.open(info)
        except DAMAGED:
            raise Unreadable(
                "damaged_archive", "This file in the archive is damaged. Pack it again.", name
            ) from None
        return buffered(Bounded(inner, Allowance(info.compress_size, limits), whole, name=name))

    with opened() as file:
        head = file.read(HEAD)
    if head.startswith(PARQUET):
        with _spooled(opened(), name) as copy:
            yield from in_batches(read_parquet(copy, limits, name))
    elif head.startswith(ZIP) and b"[Content_Types].xml" in head:
        with _spooled(opened(), name) as copy:
            yield from in_batches(read_workbook(copy, limits, name, notes=notes))
    elif head.startswith((ZIP, GZIP, ZSTD)):
        raise _nested(name)
    elif head.strip():
        yield from _text_source(opened, head, limits, name).batches()


def _spooled(file: BinaryIO, name: str) -> IO[bytes]:
    """A nameless copy on disk, which is gone when it is closed."""
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    size = 0
    with file:
        while data := file.read(1 << 20):
            size += len(data)
            if size > SPOOL_BYTES:
                copy.close()
                raise Unreadable(
                    "unpacks_too_large", f"This file unpacks to more than {SPOOL_BYTES:,} bytes.", name
                )
            copy.write(data)
    copy.seek(0)
    return cast(IO[bytes], copy)


def _shown(name: str) -> str:
    """A member's name for people: without what could turn or hide the text around it."""
    clean = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    return clean if len(clean) <= SHOWN_NAME else clean[: SHOWN_NAME - 1] + "…"


def _nested(name: str = "") -> Unreadable:
    return Unreadable(
        "nested_archive",
        "An archive inside an archive is not read. Pack the data files in one archive.",
        name,
    )


def _unknown(head: bytes, name: str) -> Unreadable:
    if head.startswith(OLD_OFFICE):
        message = (
            "This is a workbook of an old Excel (.xls), or one with a password. Save it as .xlsx or CSV."
        )
        return Unreadable("old_workbook", message, name)
    what = "a PDF" if head.startswith(b"%PDF") else "not a kind of file that is read here"
    return Unreadable(
        "unknown_format", f"This is {what}. Upload JSON Lines, JSON, CSV, Excel or Parquet.", name
    )
