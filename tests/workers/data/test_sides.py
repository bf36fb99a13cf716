"""Rows that stand in two places, splits by group, and the fields beside the conversation."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.contract import Doctor, Mapping, OtherRows, SplitSpec, ValidateSpec
from workers.data import read_rows, split_rows
from workers.data.beside import extra_json, extra_of, paths, value_at
from workers.data.chat import Row
from workers.data.limited import validate_in_child
from workers.data.normalised import is_normalised
from workers.data.validation import validate

OTHER = OtherRows(name="the suite", sha256="0" * 64)


def chat(question: str, answer: str = "yes", **extra: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **extra}


def write(tmp_path: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    file = tmp_path / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def doctor(file: Path, *others: Path, **spec: Any) -> Doctor:
    report = validate(file, ValidateSpec(others=[OTHER] * len(others), **spec), others=others)
    assert report.doctor is not None
    return report.doctor


def words(seed: int, count: int = 60) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefghij", k=6)) for _ in range(count)]


def test_rows_that_are_in_a_suite_too_are_counted_and_named(tmp_path: Path) -> None:
    almost = words(1)
    suite = write(tmp_path, chat("same"), chat("q", "a"), chat(" ".join(almost)), name="suite.jsonl")
    almost[30] = "other"
    file = write(tmp_path, chat("new"), chat("same"), chat("q", "b"), chat(" ".join(almost)), chat("same"))
    found = doctor(file, suite)
    (overlap,) = found.overlap
    assert (overlap.name, overlap.exact, overlap.same_question, overlap.near) == ("the suite", 2, 1, 1)
    assert overlap.rows == [2, 3, 4, 5] and overlap.total == 4
    assert overlap.places[1] == "row 3 asks the same as row 2 there"
    assert found.verdict == "ready_with_warnings" and "the suite" in found.reasons[0]


def test_no_overlap_is_said_too(tmp_path: Path) -> None:
    found = doctor(write(tmp_path, chat("a")), write(tmp_path, chat("b"), name="suite.jsonl"))
    assert [each.total for each in found.overlap] == [0] and found.verdict == "ready"


def test_a_suite_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "suite"
    broken.write_bytes(b"PAR1 and nothing")
    report = validate_in_child(write(tmp_path, chat("a")), ValidateSpec(others=[OTHER]), others=[broken])
    (error,) = report.errors
    assert error.code == "damaged_parquet" and "the suite" in error.message


def test_a_group_is_on_one_side_only_whatever_its_spelling(tmp_path: Path) -> None:
    rows = [chat(f"q {n}", customer=str(n % 9) if n % 2 else n % 9) for n in range(300)]
    split = SplitSpec(share=0.4, seed=2, group="customer")
    found = list(read_rows(write(tmp_path, *rows), extra=True))
    train, heldout = split_rows(found, split)
    sides = [{str(row["extra"]["customer"]) for row in side} for side in (train, heldout)]
    assert all(sides) and not sides[0] & sides[1]
    assert len(train) + len(heldout) == 300


def test_a_split_is_the_same_of_the_original_and_of_the_normalised_rows(tmp_path: Path) -> None:
    rows = [chat(f"q {n}", metadata={"customer": {"id": n % 7}}) for n in range(100)] + [chat("alone")]
    file, rows_file = write(tmp_path, *rows), tmp_path / "rows.parquet"
    split = SplitSpec(share=0.3, seed=1, group="metadata.customer.id")
    report = validate(file, ValidateSpec(split=split), rows_file=rows_file)
    one, two = (split_rows(read_rows(path, extra=True), split) for path in (file, rows_file))
    assert one == two
    assert report.doctor is not None and report.doctor.split is not None
    counts = report.doctor.split
    assert (counts.train, counts.heldout) == (len(one[0]), len(one[1]))
    assert (counts.groups, counts.without_group) == (7, 1)
    assert counts.heldout_groups == len({str(row["extra"]) for row in one[1] if "extra" in row})


def test_rows_on_both_sides_are_counted(tmp_path: Path) -> None:
    """With a group, equal rows of two customers can be on both sides."""
    split = SplitSpec(share=0.5, seed=3, group="customer")
    rows = [chat("q", customer="a"), chat("q", customer="b"), chat("q", "no", customer="c")]
    sides = {
        customer: split_rows([Row(messages=[], extra={"customer": customer})], split)[1] != []
        for customer in "abc"
    }
    assert len(set(sides.values())) == 2, sides
    found = doctor(write(tmp_path, *rows), split=split)
    (overlap,) = found.overlap
    held = [customer for customer in "abc" if sides[customer]]
    expected = len(held)  # each asks what somebody on the other side asks
    assert overlap.name == "" and overlap.total == expected
    assert "held-out side" in found.reasons[0]


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        (SplitSpec(share=0.1, group="nothing"), "No row has a value in `nothing`"),
        (SplitSpec(share=0.0001), "The split holds out no row"),
    ],
)
def test_a_split_that_does_not_split_is_said(tmp_path: Path, split: SplitSpec, sentence: str) -> None:
    found = doctor(write(tmp_path, *(chat(f"q {n}") for n in range(20))), split=split)
    assert any(sentence in reason for reason in found.reasons), found.reasons


def test_fields_beside_the_conversation_are_kept_whatever_the_file(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    jsonl = write(tmp_path, chat("q", tools=tools, id=7, note="a\u0000b", bad="\ud800", far=10**30))
    table = tmp_path / "rows.csv"
    table.write_text("question,answer,customer\nq,a,A\n", encoding="utf-8")
    kept = []
    for file in (jsonl, table):
        rows_file = tmp_path / "rows.parquet"
        report = validate(file, ValidateSpec(), rows_file=rows_file)
        assert report.doctor is not None and report.valid == 1
        (row,) = read_rows(rows_file, extra=True)
        assert report.doctor.fields.keys() == row["extra"].keys()
        report.model_dump_json()  # what a database keeps
        assert "\0" not in json.dumps(report.model_dump(mode="json"), ensure_ascii=False)
        kept.append(row["extra"])
    assert kept[0] == {"tools": tools, "id": 7, "note": "a\u0000b", "bad": "?", "far": 10**30}
    assert kept[1] == {"customer": "A"}


@pytest.mark.parametrize("end", ["\n", ""], ids=["whole", "last line open"])
def test_normalised_rows_of_many_blocks_are_read_back(tmp_path: Path, end: str) -> None:
    """A file that is more than one batch makes more than one row group, or did."""
    file, rows_file = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    lines = [json.dumps(chat(f"q {n} " + "word " * 200)) for n in range(5000)]
    file.write_text("\n".join(lines) + end, encoding="utf-8")
    report = validate(file, ValidateSpec(near_duplicates=False), rows_file=rows_file)
    assert is_normalised(rows_file) and report.valid == 5000
    assert list(read_rows(rows_file)) == list(read_rows(file))
    again = validate(rows_file, ValidateSpec(near_duplicates=False))
    assert (again.valid, again.characters) == (report.valid, report.characters)


@pytest.mark.parametrize(
    "row",
    [
        '{"prompt": "a", "completion": "b", "n\\u0000\\ud800": {"x\\u0000": 1}}',
        '{"prompt": "a", "completion": "b", "n\\u0000": 1, "n\\u0000": 2}',
        '{"prompt": "a\\ud800", "completion": "b"}',
        '{"messages": [{"role": "us\\u0000\\udfff", "content": "x"}]}',
    ],
)
def test_a_report_holds_nothing_that_a_database_refuses(tmp_path: Path, row: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(row, encoding="utf-8")
    report = validate(file, ValidateSpec(), rows_file=tmp_path / "rows.parquet")
    assert report.errors or report.warnings
    text = json.dumps(report.model_dump(mode="json"), ensure_ascii=False)
    text.encode()
    assert "\0" not in text.replace("\\\\u0000", "").replace("\\u0000", "\0")


def test_a_file_that_only_claims_to_be_normalised_is_read_like_any_other(tmp_path: Path) -> None:
    rows_file, forged = tmp_path / "rows.parquet", tmp_path / "forged.parquet"
    validate(write(tmp_path, chat("q"), chat("r")), ValidateSpec(), rows_file=rows_file)
    table = pq.read_table(rows_file)
    marked = pa.table({"question": ["q"], "answer": ["a"]}).replace_schema_metadata(table.schema.metadata)
    pq.write_table(marked, forged)
    assert not is_normalised(forged)
    assert [row["messages"][0]["content"] for row in read_rows(forged)] == ["q"]

    messages = [[{"role": "tool", "content": "x", "reasoning_content": None}], [None]]
    columns = {"row": table["row"], "source": table["source"], "messages": messages, "extra": ["{", None]}
    typed = pa.table(columns, schema=table.schema)
    pq.write_table(typed.slice(1), forged)
    report = validate(forged, ValidateSpec())
    assert is_normalised(forged) and report.valid == 0 and "not_an_object" in report.error_counts
    pq.write_table(typed, forged)
    assert "damaged_parquet" in validate(forged, ValidateSpec()).error_counts

    forged.write_bytes(rows_file.read_bytes()[:-9] + b"\xff" * 5 + b"PAR1")
    assert "damaged_parquet" in validate(forged, ValidateSpec()).error_counts


def test_other_names_for_roles_can_be_given(tmp_path: Path) -> None:
    row = {"talk": [{"who": "Kunde", "says": "q"}, {"who": "gpt", "says": "a"}]}
    mapping = Mapping(shape="chat", messages="talk", role="who", text="says", roles={"kunde": "user"})
    (found,) = read_rows(write(tmp_path, row), mapping=mapping)
    assert [message["role"] for message in found["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("a", "1"),
        ("b.c", "two"),
        ("b.d.e", "true"),
        ("x.y", "dotted"),
        ("x.y.z", None),
        ("b", '{"c":"two","d":{"e":true}}'),
        ("empty", None),
        ("nothing", None),
        ("a.b", None),
    ],
)
def test_a_value_is_found_by_its_path(path: str, value: str | None) -> None:
    extra = {"a": 1, "b": {"d": {"e": True}, "c": " two "}, "x.y": "dotted", "empty": " "}
    if path == "b":
        extra["b"] = {"d": {"e": True}, "c": "two"}
    assert value_at(extra, path) == value


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=4), inside, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), JSON, max_size=4))
def test_what_is_kept_beside_a_row_comes_back(extra: dict[str, Any]) -> None:
    assert (extra_of(extra_json(extra)) or {}) == extra
    for path in paths(extra):
        value_at(extra, path)
