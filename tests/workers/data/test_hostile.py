"""Files that mean harm, or are broken in ways that others make good use of: a sentence each, at once."""

import gzip
import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from openpyxl.utils import get_column_letter

from tests.workers.data.files import (
    CHATS,
    JSONL,
    TABLE,
    check,
    parquet_of,
    write,
    xlsx_of,
    zip_of,
)
from workers.contract import ValidateSpec
from workers.data.limited import validate_in_child
from workers.data.readers import Limits, Unreadable, open_source

LAST_COLUMN = 18_278
"""ZZZ: openpyxl has no name for the next one."""


def bomb_of_zeros() -> bytes:
    return zip_of({"rows.jsonl": b"{}\n" + b"a" * 200_000_000})


def bombs_in_one() -> bytes:
    """Each of them alone would be small enough to be let through."""
    return zip_of({f"{n}.jsonl": b"{}\n" + b"a" * 40_000_000 for n in range(3)})


def overlapping() -> bytes:
    """Two entries of the directory for the one file."""
    packed = zip_of({"rows.jsonl": JSONL})
    end = packed.rindex(b"PK\x05\x06")
    size, start = struct.unpack_from("<II", packed, end + 12)
    directory = packed[start : start + size] * 2
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 2, 2, len(directory), start, 0)
    return packed[:start] + directory + tail


def workbook_with(part: str, body: bytes) -> bytes:
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(xlsx_of(TABLE))) as old,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, body if name == part else old.read(name))
    return out.getvalue()


ENTITIES = (
    b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><sst>&b;</sst>'
)


def parquet_bomb() -> bytes:
    """Few bytes that say: the same text of a megabyte, four thousand times."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 4000, pa.int32()), pa.array(["x" * 1_000_000]))
    table = pa.table({"question": text, "answer": ["y"] * 4000})
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def parquet_of_one_row(rows: int) -> bytes:
    """The same row so many times, in hardly any bytes."""
    same = pa.array([0] * rows, pa.int32())
    columns = {
        name: pa.DictionaryArray.from_arrays(same, pa.array([name])) for name in ("question", "answer")
    }
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def wide_workbook(columns: int, *, dimension: bool = False) -> bytes:
    """Cells up to that column, told by their places; with the size of the sheet, where asked for."""
    ends = ["A", "B", get_column_letter(columns) if columns <= LAST_COLUMN else "EQXD"]
    cells = "".join(f'<c r="{end}1" t="inlineStr"><is><t>{end}</t></is></c>' for end in ends)
    said = f'<dimension ref="A1:{ends[-1]}1"/>' if dimension else ""
    space = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    sheet = f'<worksheet xmlns="{space}">{said}<sheetData><row r="1">{cells}</row></sheetData></worksheet>'
    return workbook_with("xl/worksheets/sheet1.xml", sheet.encode())


HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "zip bomb": ("unpacks_too_large", bomb_of_zeros),
    "zip of small bombs": ("unpacks_too_large", bombs_in_one),
    "zip whose files overlap": ("damaged_archive", overlapping),
    "gzip bomb": ("unpacks_too_large", lambda: gzip.compress(b'{"a": "' + b"a" * 200_000_000)),
    "workbook bomb": (
        "unpacks_too_large",
        lambda: workbook_with("xl/worksheets/sheet1.xml", b"<a>" + b" " * 200_000_000),
    ),
    "a workbook of 5,000 columns": ("too_many_columns", lambda: wide_workbook(5000)),
    "a workbook of 100,000 columns": ("too_many_columns", lambda: wide_workbook(100_000)),
    "a workbook that says so": ("too_many_columns", lambda: wide_workbook(100_000, dimension=True)),
    "the same text of a megabyte": ("unpacks_too_large", parquet_bomb),
    "the same row of Parquet": ("unpacks_too_large", lambda: parquet_of_one_row(2_000_000)),
    "a member that says it is large": (
        "unpacks_too_large",
        lambda: zip_of({"rows.jsonl": b'{"prompt": "q", "completion": "a"}\n' * 2_400_000}),
    ),
    "workbook with entities": ("xml_entities", lambda: workbook_with("xl/worksheets/sheet1.xml", ENTITIES)),
    "workbook that is none": ("damaged_workbook", lambda: workbook_with("xl/workbook.xml", b"<no")),
    "zip in a zip": ("nested_archive", lambda: zip_of({"inner.zip": zip_of({"rows.jsonl": JSONL})})),
    "zip in a gzip": ("nested_archive", lambda: gzip.compress(zip_of({"rows.jsonl": JSONL}))),
    "names that lead out": ("unsafe_name", lambda: zip_of({"../../etc/cron.d/x": JSONL})),
    "empty archive": ("empty_archive", lambda: zip_of({})),
    "cut archive": ("damaged_archive", lambda: zip_of({"rows.jsonl": JSONL})[:-30]),
    "cut gzip": ("damaged_archive", lambda: gzip.compress(JSONL * 100)[:-20]),
    "cut list": ("cut_off", lambda: json.dumps(CHATS).encode()[:-1]),
    "text after the list": ("after_the_list", lambda: json.dumps(CHATS).encode() + b" []"),
    "cut Parquet": ("damaged_parquet", lambda: parquet_of(TABLE)[:-9]),
    "a PDF": ("unknown_format", lambda: b"%PDF-1.7\n" + bytes(range(256)) * 10),
    "prose": ("plain_text", lambda: b"Once upon a time.\nThere was no data.\n" * 9),
    "one column": ("plain_text", lambda: b"text\nhello\nworld\n"),
    "UTF-16 cut in a letter": ("wrong_encoding", lambda: JSONL.decode().encode("utf-16") + b"\x41"),
    "thousands of files": ("too_many_files", lambda: zip_of({f"{n}.csv": b"" for n in range(1001)})),
    "a name from the root": ("unsafe_name", lambda: zip_of({"/etc/rows.jsonl": JSONL})),
    "thousands of Parquet columns": (
        "too_many_columns",
        lambda: parquet_of([{f"c{n}": 1 for n in range(1500)}]),
    ),
    "objects that never end": ("cut_off", lambda: b'{\n "messages": [\n' * 200),
    "a program": ("unknown_format", lambda: b"\x7fELF" + bytes(1000)),
    "100,000 columns": (
        "too_many_columns",
        ",".join(f"c{n}" for n in range(100_000)).encode,
    ),
    "a quotation mark too many": (
        "cell_too_long",
        lambda: b'question,answer\n"a,b\n' + b"aaaaaaaaaaaaaaa,b\n" * 700_000,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_a_sentence(tmp_path: Path, name: str) -> None:
    code, make = HOSTILE[name]
    rows_file = tmp_path / "rows.parquet"
    report = validate_in_child(write(tmp_path, make()), ValidateSpec(), rows_file=rows_file)
    assert code in report.error_counts, report.errors[:3]
    said = next(problem for problem in report.errors if problem.code == code)
    assert said.message.endswith((".", "?")) and "Traceback" not in said.message
    assert report.peak_rss_bytes < 1024**3
    assert rows_file.exists() == (report.valid > 0)
    assert {path.name for path in tmp_path.iterdir()} <= {"data.jsonl", "rows.parquet"}


def test_rows_beyond_the_most_are_not_read(tmp_path: Path) -> None:
    limits = Limits(rows=5000)
    lines = b'{"prompt": "q", "completion": "a"}\n' * 5000
    several = zip_of({"a.jsonl": lines, "b.csv": b"question,answer\n" + b"q,a\n" * 3000})
    table = parquet_of([{"question": "q", "answer": "a"}] * 5001)
    for body, most in ((several, 5000), (table, 0)):
        read = 0
        with pytest.raises(Unreadable) as caught:
            for batch in open_source(write(tmp_path, body), limits).batches():
                read += len(batch) if isinstance(batch, list) else batch.data.count(b"\n")
        assert caught.value.code == "too_many_rows" and read <= most + 512
    whole = open_source(write(tmp_path, parquet_of([{"question": "q", "answer": "a"}] * 5000)), limits)
    assert sum(len(batch) for batch in whole.batches() if isinstance(batch, list)) == 5000


def test_a_sheet_is_read_whatever_size_it_claims(tmp_path: Path) -> None:
    """Some programs write that a sheet is one cell."""
    book = zipfile.ZipFile(io.BytesIO(xlsx_of(TABLE)))
    sheet = book.read("xl/worksheets/sheet1.xml")
    assert b'<dimension ref="A1:B3"' in sheet
    body = workbook_with(
        "xl/worksheets/sheet1.xml", sheet.replace(b'<dimension ref="A1:B3"', b'<dimension ref="A1"')
    )
    report = check(tmp_path, body)
    assert (report.rows, report.valid) == (2, 2)
