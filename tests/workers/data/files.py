"""Files of every kind, made of the same few rows."""

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq

from workers.contract import ValidateSpec, ValidationReport
from workers.data import validate

PAIRS = [("Which clause is this? é…", "termination"), ("And this?\nTwo lines.", '{"type": "liability"}')]
CHATS = [
    {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in PAIRS
]
TABLE = [{"question": q, "answer": a} for q, a in PAIRS]
JSONL = "".join(json.dumps(row) + "\n" for row in CHATS).encode()


def csv_of(rows: list[dict[str, str]], delimiter: str = ",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def xlsx_of(rows: list[dict[str, Any]]) -> bytes:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(list(rows[0]))
    for row in rows:
        sheet.append(list(row.values()))
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def parquet_of(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def titled(body: bytes) -> bytes:
    """A workbook with two rows above its table, and another sheet."""
    book = openpyxl.load_workbook(io.BytesIO(body))
    book.active.insert_rows(1, 2)
    book.active["A1"] = "All questions of 2024"
    book.create_sheet("Other")["A1"] = "x"
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return out.getvalue()


def write(tmp_path: Path, body: bytes) -> Path:
    file = tmp_path / "data.jsonl"  # the name says nothing
    file.write_bytes(body)
    return file


def check(tmp_path: Path, body: bytes, **spec: Any) -> ValidationReport:
    return validate(write(tmp_path, body), ValidateSpec(**spec))
