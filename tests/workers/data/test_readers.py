"""Files of every kind that is read: the same rows, whatever they are written in, and damaged ones."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.workers.data.files import (
    CHATS,
    JSONL,
    TABLE,
    check,
    csv_of,
    parquet_of,
    titled,
    write,
    xlsx_of,
    zip_of,
)
from workers.contract import Mapping, ValidateSpec
from workers.data import BadRow, read_rows, validate
from workers.data.checks import check_line
from workers.data.fast import fast_rows
from workers.data.lines import Line, read_blocks

CLEAN: dict[str, tuple[str, Callable[[], bytes]]] = {
    "JSON Lines": ("JSON Lines", lambda: JSONL),
    "JSON Lines, UTF-16": ("JSON Lines", lambda: JSONL.decode().encode("utf-16")),
    "JSON Lines, UTF-16 without a mark": ("JSON Lines", lambda: JSONL.decode().encode("utf-16-be")),
    "JSON list": ("JSON list", lambda: json.dumps(CHATS, indent=1).encode()),
    "JSON list in an object": ("JSON list", lambda: json.dumps({"n": [1], "data": CHATS, "x": {}}).encode()),
    "JSON list in an object of many lines": (
        "JSON list",
        lambda: json.dumps({"é": 2, "rows": CHATS}, indent=2, ensure_ascii=False).encode("utf-8-sig"),
    ),
    "JSON objects of many lines": (
        "JSON objects",
        lambda: "\n".join(json.dumps(row, indent=2) for row in CHATS).encode("utf-16"),
    ),
    "JSON objects with commas": (
        "JSON objects",
        lambda: ",\n".join(json.dumps(row, indent=1) for row in CHATS).encode(),
    ),
    "JSON Lines of an old Mac": ("JSON Lines", lambda: JSONL.replace(b"\n", b"\r")),
    "CSV under a title": ("CSV", lambda: b"All questions of 2024\n\n" + csv_of(TABLE).encode()),
    "Excel under a title": ("Excel workbook", lambda: titled(xlsx_of(TABLE))),
    "CSV": ("CSV", lambda: csv_of(TABLE).encode()),
    "CSV with semicolons": ("CSV", lambda: csv_of(TABLE, ";").encode("utf-8-sig")),
    "CSV, Windows": ("CSV", lambda: csv_of(TABLE).encode("cp1252")),
    "TSV": ("TSV", lambda: csv_of(TABLE, "\t").encode()),
    "Excel": ("Excel workbook", lambda: xlsx_of(TABLE)),
    "Parquet table": ("Parquet", lambda: parquet_of(TABLE)),
    "Parquet chats": ("Parquet", lambda: parquet_of(CHATS)),
    "gzip": ("JSON Lines in gzip", lambda: gzip.compress(JSONL)),
    "Zstandard": ("JSON Lines in Zstandard", lambda: pa.compress(JSONL, "zstd", asbytes=True)),
    "ZIP of JSON Lines": ("ZIP of 1 file", lambda: zip_of({"folder/rows.jsonl": JSONL, "__MACOSX/x": b"x"})),
    "ZIP with a picture": (
        "ZIP of 1 file",
        lambda: zip_of(
            {"rows.csv": csv_of(TABLE).encode(), "a.png": b"\x89PNG" + bytes(99), "README": b"Hi."}
        ),
    ),
    "ZIP of Excel": ("ZIP of 1 file", lambda: zip_of({"rows.xlsx": xlsx_of(TABLE)})),
    "ZIP of Parquet": ("ZIP of 1 file", lambda: zip_of({"rows.parquet": parquet_of(TABLE)})),
}


@pytest.mark.parametrize("name", CLEAN)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    label, make = CLEAN[name]
    file = write(tmp_path, make())
    rows_file = tmp_path / "rows.parquet"
    report = validate(file, ValidateSpec(), rows_file=rows_file)
    assert report.errors == [] and (report.rows, report.valid) == (2, 2)
    assert report.reading is not None and report.reading.format == label
    assert list(read_rows(file)) == list(read_rows(rows_file)) == CHATS


SHAPES: dict[str, tuple[list[dict[str, Any]], str]] = {
    "Alpaca": ([{"instruction": "Translate.", "input": "Haus", "output": "house"}], "Translate.\n\nHaus"),
    "ShareGPT": (
        [{"conversations": [{"from": "human", "value": "Haus?"}, {"from": "gpt", "value": "house"}]}],
        "Haus?",
    ),
    "prompt and completion": ([{"prompt": "Haus?", "completion": "house"}], "Haus?"),
    "preference pairs (the chosen answers are learned)": (
        [{"prompt": "Haus?", "chosen": "house", "rejected": "mouse"}],
        "Haus?",
    ),
    "questions with reasoning and answer": (
        [{"problem": "Haus?", "reasoning_content": "German.", "solution": "house"}],
        "Haus?",
    ),
    "questions and answers": ([{"Frage": "Haus?", "Antwort": "house"}], "Haus?"),
}
LONGER = [{"Anfrage ID": "7", "answer_id": 3, "Frage des Kunden": "Haus?", "Answer (final)": "house"}]


def test_a_longer_heading_is_recognised_by_its_first_word(tmp_path: Path) -> None:
    reading = check(tmp_path, json.dumps(LONGER[0]).encode()).reading
    assert reading is not None and reading.mapping is not None
    assert (reading.mapping.question, reading.mapping.answer) == ("Frage des Kunden", "Answer (final)")


def test_columns_that_are_not_clear_are_one_error(tmp_path: Path) -> None:
    report = check(
        tmp_path, csv_of([{"Spalte A": f"Haus {n}?", "Spalte B": "house"} for n in range(9)]).encode()
    )
    assert (report.rows, report.valid, report.error_counts) == (9, 0, {"nothing_trainable": 1})
    assert report.doctor is not None and "Say which columns" in report.doctor.next_step


def test_the_usual_encoding_is_preferred_where_others_read_the_same(tmp_path: Path) -> None:
    rows = [{"question": f"Wie heißt die Straße {n} in Köln?", "answer": "Öko „3“ – 5 €"} for n in range(9)]
    reading = check(tmp_path, csv_of(rows, ";").encode("cp1252")).reading
    assert reading is not None and (reading.encoding, reading.delimiter) == ("Windows-1252", ";")


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_recognised_by_looking(tmp_path: Path, name: str) -> None:
    rows, question = SHAPES[name]
    file = write(tmp_path, "\n".join(map(json.dumps, rows)).encode())
    report = validate(file, ValidateSpec())
    assert report.reading is not None and report.reading.mapping is not None
    assert report.reading.mapping.name == name and report.valid == 1, report.errors
    (row,) = read_rows(file)
    assert row["messages"][0] == {"role": "user", "content": question}
    assert row["messages"][-1]["content"] == "house"
    assert row["messages"][-1].get("reasoning_content") == ("German." if "reasoning" in name else None)


def test_what_a_person_says_overrides_what_it_looks_like(tmp_path: Path) -> None:
    body = json.dumps({"question": "Haus?", "answer": "house", "note": "mouse"}).encode()
    mapping = Mapping(shape="columns", question="note", answer="question")
    report = check(tmp_path, body, mapping=mapping)
    assert [message["content"] for message in report.samples[0]["messages"]] == ["mouse", "Haus?"]  # type: ignore[attr-defined]
    assert report.reading is not None and not report.reading.recognised


def test_places_are_those_of_the_program_that_made_the_file(tmp_path: Path) -> None:
    rows = [*TABLE, {"question": "", "answer": "x"}]
    (problem,) = check(tmp_path, xlsx_of(rows)).errors
    assert (problem.row, problem.field, problem.code, problem.source) == (
        4,
        "question",
        "missing_field",
        "Sheet",
    )
    (problem,) = check(tmp_path, csv_of(rows).encode()).errors
    assert (problem.row, problem.code) == (5, "missing_field")  # a question spans two lines


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("nul_byte", csv_of([{"question": "a\0b", "answer": "x"}]).encode()),
        ("not_utf8", csv_of([{"question": "é…", "answer": "x"}]).encode() + b"\xff\xfe,y\n"),
        ("too_many_cells", b"question,answer\na,b,c\n"),
        ("duplicate_key", b'[{"prompt": "a", "prompt": "b", "completion": "c"}]'),
        ("bad_number", b'[{"prompt": "a", "completion": "c", "score": 1e400}]'),
        ("too_deep", b'[{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}]"),
    ],
)
def test_a_bad_row_of_any_file_is_an_error_of_that_row(tmp_path: Path, code: str, line: bytes) -> None:
    assert code in check(tmp_path, line).error_counts


@pytest.mark.parametrize(
    ("code", "make", "said"),
    [
        (
            "skipped_files",
            lambda: zip_of({"rows.jsonl": JSONL, "READ\u202eME": b"Hi."}),
            "such as READ\ufffdME",
        ),
        ("skipped_sheets", lambda: titled(xlsx_of(TABLE)), "Only the sheet 'Sheet' is read"),
    ],
)
def test_what_is_not_read_is_said(tmp_path: Path, code: str, make: Callable[[], bytes], said: str) -> None:
    report = check(tmp_path, make())
    (warning,) = report.warnings
    assert (report.valid, warning.row, warning.code) == (2, 0, code) and said in warning.message


def test_a_row_alone_in_its_file_is_no_list_of_rows(tmp_path: Path) -> None:
    body = json.dumps({**CHATS[0], "items": [{"prompt": "a", "completion": "b"}]})
    (row,) = read_rows(write(tmp_path, body.encode()))
    assert row == CHATS[0]


def test_names_in_archives_are_shown_without_tricks(tmp_path: Path) -> None:
    (problem, *_) = check(tmp_path, zip_of({"a\u202egnp.jsonl": b'{"prompt": 1}\n'})).errors
    assert problem.source == "a\ufffdgnp.jsonl"


@given(
    st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line and not line.endswith(b"\r"))),
    st.integers(1, 64),
)
def test_blocks_hold_the_lines_of_the_file(lines: list[bytes], block: int) -> None:
    body = b"\n".join(lines)
    found = [
        line.data for each in read_blocks(io.BytesIO(body), 40, block_bytes=block) for line in each.lines(40)
    ]
    expected = body.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert found == (expected[:-1] if expected[-1] == b"" else expected)


TEXTS = st.sampled_from(
    ["", " ", "a", 'say "x": y', "\u0000", "<think>a</think>b", "<think></think>b", "é\\", "<think>"]
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": TEXTS},
    optional={
        "reasoning_content": TEXTS | st.none(),
        "reasoning": TEXTS,
        "name": TEXTS,
        "weight": st.integers(),
        "tool_calls": st.sampled_from(
            [None, [], [{"function": {"name": "f", "arguments": "{}"}}], [1], "f()"]
        ),
        "tool_call_id": TEXTS | st.integers(),
    },
)
ROWS = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(MESSAGES, max_size=4),
        "prompt": TEXTS,
        "completion": TEXTS,
        "id": TEXTS,
        "tools": st.sampled_from([None, [], "[]", [{"name": "f"}], [{}], {"name": "f"}, "["]),
        "x": st.just({"a": 1}) | st.just([{"b": [{"b": 1}]}, 1e10]),
    },
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(ROWS, st.sampled_from([(",", ":"), (", ", ": "), (", ", " : ")]), st.booleans(), st.booleans())
def test_the_fast_way_says_what_the_exact_way_says(
    row: dict[str, Any], separators: tuple[str, str], ascii_only: bool, twice: bool
) -> None:
    text = json.dumps(row, separators=separators, ensure_ascii=ascii_only)
    if twice and text != "{}":
        text = text[:-1] + "," + text[1:]
    if "\\u0000" in text:
        return
    (found,) = fast_rows(text.encode(), 1000)
    if found is None:
        return
    exact = check_line(Line(1, text.encode(), len(text)), 1000)
    assert found == (exact.row and exact.row["messages"], exact.extra)
    assert not exact.errors and not exact.warnings


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_never_raise(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes of good files, changed at random: a report or rows, whatever they hold."""
    kinds = [
        JSONL,
        csv_of(TABLE).encode(),
        json.dumps(CHATS).encode(),
        json.dumps(CHATS[0], indent=1).encode() * 2,
        json.dumps({"data": CHATS}).encode(),
        gzip.compress(JSONL),
        zip_of({"a.csv": JSONL}),
    ]
    body = bytearray(data.draw(st.sampled_from(kinds)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    file = write(tmp_path, bytes(body))
    report = validate(file, ValidateSpec())
    assert report.valid <= report.rows
    try:
        rows = list(read_rows(file))
    except BadRow:
        assert report.error_count
    else:
        assert len(rows) == report.valid
