"""New versions from old ones: every operation counted against rows made for it, and what differs then."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from workers.contract import CompareResult, CompareSpec, DeriveResult, DeriveSpec, Mapping, ValidateSpec
from workers.data import read_rows
from workers.data.compare import compare
from workers.data.derive import derive
from workers.data.limited import ChildFailed, compare_in_child, derive_in_child
from workers.data.validation import validate

NOBODY = "0" * 64
LONG = "the clause says that either party may end the contract with thirty days of notice in writing if the "
LONG += "other has not paid what was due for more than a month after a reminder was sent by registered letter"


def chat(question: str, answer: str = "yes", **extra: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **extra}


def write(tmp_path: Path, *rows: dict[str, Any], name: str = "rows.jsonl") -> Path:
    file = tmp_path / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def run(
    tmp_path: Path, *files: Path, ops: Sequence[dict[str, Any]], mapping: Mapping | None = None, **more: Any
) -> DeriveResult:
    sources = [{"name": file.name, "sha256": NOBODY, "mapping": mapping} for file in files]
    spec = DeriveSpec.model_validate({"sources": sources, "operations": ops, **more})
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    return derive(spec, sources=list(files), out=out)


def questions(tmp_path: Path) -> list[str]:
    return [row["messages"][0]["content"] for row in read_rows(tmp_path / "out" / "rows.parquet")]


ROWS = [
    chat("one", customer="A", note="from Jane.Doe@example.com"),
    chat("two jane.doe@example.com", customer="B"),
    chat("one", customer="C"),
    chat("  three ", "<think>never closed", customer="A"),
    chat("four", "no", metadata={"team": "x", "size": 4}),
]


@pytest.mark.parametrize(
    ("operation", "left"),
    [
        ({"op": "drop_rows", "rows": [{"row": 1}, {"row": 4}, {"row": 99}]}, ["two", "one", "four"]),
        ({"op": "drop_rows", "rows": [{"row": 1, "source": "x"}]}, ["one", "two", "one", "three", "four"]),
        ({"op": "drop_duplicates"}, ["one", "two", "three", "four"]),
        ({"op": "drop_problems", "codes": ["unclosed_think"]}, ["one", "two", "one", "four"]),
        ({"op": "drop_problems", "codes": ["personal_data"]}, ["one", "one", "three", "four"]),
        ({"op": "filter", "field": "answer", "equals": "no"}, ["four"]),
        ({"op": "filter", "field": "extra.customer", "equals": "A", "keep": False}, ["two", "one", "four"]),
        ({"op": "filter", "field": "extra.metadata.size", "equals": "4"}, ["four"]),
        ({"op": "filter", "field": "question", "contains": "JANE"}, ["two"]),
        ({"op": "filter", "field": "question", "longest": 3}, ["one", "one"]),
        ({"op": "drop_containing", "text": "jane.doe@EXAMPLE.com"}, ["one", "three", "four"]),
        ({"op": "drop_containing", "file": "other file"}, ["one", "two", "one", "three", "four"]),
    ],
    ids=lambda value: value["op"] if isinstance(value, dict) else "",
)  # fmt: skip
def test_rows_go(tmp_path: Path, operation: dict[str, Any], left: list[str]) -> None:
    result = run(tmp_path, write(tmp_path, *ROWS), ops=[operation])
    assert [question.split()[0] for question in questions(tmp_path)] == left
    (done,) = result.operations
    assert (done.op, done.rows_in, done.rows_out, done.changed) == (operation["op"], 5, len(left), 0)
    assert len(done.examples) == (0 if operation["op"] == "drop_containing" else 5 - len(left))
    assert result.report is not None and result.report.valid == len(left)


def test_rows_change_and_their_text_is_shown_before_and_after(tmp_path: Path) -> None:
    ops: list[dict[str, Any]] = [{"op": "mask", "kinds": ["email"]}, {"op": "trim"}]
    result = run(tmp_path, write(tmp_path, *ROWS), ops=ops)
    rows = list(read_rows(tmp_path / "out" / "rows.parquet", extra=True))
    assert rows[0]["extra"] == {"customer": "A", "note": "from [EMAIL]"}
    assert [row["messages"][0]["content"] for row in rows][1::2] == ["two [EMAIL]", "three"]
    masked, trimmed = result.operations
    assert (masked.changed, masked.found, trimmed.changed) == (2, {"email": 2}, 1)
    assert masked.examples == [] and trimmed.examples[0].before.startswith("user:   three")
    (masked, _) = run(tmp_path, write(tmp_path, *ROWS), ops=ops, dry_run=True).operations
    assert "jane.doe@example.com" in masked.examples[1].before and "[EMAIL]" in masked.examples[1].after
    assert result.report is not None and result.report.doctor is not None
    assert result.report.doctor.personal == {}


def test_a_search_counts_rows_in_error_that_hold_the_text(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    lines = [
        '{"messages": []}',
        '{"messages": [], "to": "Jos\\u00e9@x.org"}',
        '{"broken: "JOSÉ@X.ORG',
        "null",
    ]
    file.write_text("\n".join([json.dumps(chat("one")), *lines]) + "\n", encoding="utf-8")
    ops = [{"op": "drop_containing", "text": "josé@x.org"}]
    result = run(tmp_path, file, ops=ops, dry_run=True)
    assert result.operations[0].found == {"in_error": 2} and result.refused == [4]
    plain = run(tmp_path, file, ops=[{"op": "drop_containing", "text": "one"}], dry_run=True)
    assert plain.operations[0].found == {} and plain.operations[0].rows_out == 0


def test_residue_and_control_characters_are_trimmed(tmp_path: Path) -> None:
    file = write(tmp_path, chat("a <|im_end|>b\u200b", "c\u202e"), chat("plain <b>"))
    result = run(tmp_path, file, ops=[{"op": "trim", "what": ["residue", "control"]}])
    assert questions(tmp_path) == ["a b", "plain <b>"]
    assert result.operations[0].found == {"residue": 1, "control": 2}


def test_almost_the_same_rows_go(tmp_path: Path) -> None:
    rows = [chat(f"{LONG} {LONG} {end}") for end in ("today", "tomorrow")]
    rows.append(chat("quite another question " * 5))
    result = run(tmp_path, write(tmp_path, *rows), ops=[{"op": "drop_duplicates", "near": True}])
    assert questions(tmp_path) == [f"{LONG} {LONG} today", "quite another question " * 5]
    assert result.operations[0].examples[0].row == 2


def test_merge_names_where_every_row_came_from(tmp_path: Path) -> None:
    one, two = write(tmp_path, chat("a"), chat("b")), write(tmp_path, chat("b"), chat("c"), name="two.jsonl")
    ops: list[dict[str, Any]] = [
        {"op": "drop_rows", "rows": [{"row": 1}]},
        {"op": "append", "source": 1},
        {"op": "drop_duplicates"},
    ]
    result = run(tmp_path, one, two, ops=ops)
    table = pq.read_table(tmp_path / "out" / "rows.parquet")
    assert table.select(["row", "origin", "origin_row"]).to_pylist() == [
        {"row": 1, "origin": 0, "origin_row": 2},
        {"row": 2, "origin": 1, "origin_row": 2},
    ]
    assert (result.rows, [done.rows_out for done in result.operations]) == ([2, 2], [1, 3, 2])


@pytest.mark.parametrize(("near", "left"), [(False, ["q", "new"]), (True, ["new"])])
def test_overlap_goes(tmp_path: Path, near: bool, left: list[str]) -> None:
    mine = write(tmp_path, chat("same"), chat("q", "other answer"), chat("new"))
    suite = write(tmp_path, chat("same"), chat("q", "the answer"), name="suite.jsonl")
    run(tmp_path, mine, suite, ops=[{"op": "drop_overlap", "source": 1, "near": near}])
    assert questions(tmp_path) == left


def test_roles_are_given_their_names(tmp_path: Path) -> None:
    odd = {"messages": [{"role": "Client", "content": "q"}, {"role": "assistant", "content": "a"}]}
    file = write(tmp_path, chat("fine"), odd, {"messages": []})
    result = run(tmp_path, file, ops=[{"op": "map_role", "role": "client", "to": "user"}])
    assert questions(tmp_path) == ["fine", "q"]
    assert (result.rows, result.refused, result.operations[0].changed) == ([2], [1], 1)
    assert result.operations[0].examples[0].row == 2


def test_the_sides_of_a_split_are_versions(tmp_path: Path) -> None:
    file = write(tmp_path, *(chat(f"q {n}", customer=f"c{n % 10}") for n in range(200)))
    split = {"share": 0.4, "seed": 1, "group": "customer"}
    found: dict[str, set[str]] = {}
    for side in ("train", "heldout"):
        run(tmp_path, file, ops=[{"op": "take_side", "split": split, "side": side}])
        rows = read_rows(tmp_path / "out" / "rows.parquet", extra=True)
        found[side] = {str(row["extra"]["customer"]) for row in rows}
    assert found["train"] and found["heldout"]
    assert not found["train"] & found["heldout"] and len(found["train"] | found["heldout"]) == 10


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path) -> None:
    result = run(tmp_path, write(tmp_path, *ROWS), ops=[{"op": "drop_duplicates"}], dry_run=True)
    assert result.report is None and result.operations[0].rows_out == 4
    assert list((tmp_path / "out").iterdir()) == []


def test_a_row_that_a_change_has_emptied_is_an_error_of_the_new_version(tmp_path: Path) -> None:
    file = write(tmp_path, chat("q", "<|im_end|>"), chat("fine"))
    report = run(tmp_path, file, ops=[{"op": "trim", "what": ["residue"]}]).report
    assert report is not None and (report.valid, report.error_counts) == (1, {"empty_answer": 1})


def test_derived_rows_can_be_derived_again(tmp_path: Path) -> None:
    rows = [chat(f"q {n}", customer=n) for n in range(3000)]  # more than one batch
    run(tmp_path, write(tmp_path, *rows), ops=[{"op": "drop_rows", "rows": [{"row": 1}]}])
    first = (tmp_path / "out" / "rows.parquet").rename(tmp_path / "first.parquet")
    run(tmp_path, first, ops=[{"op": "filter", "field": "extra.customer", "equals": "2999"}])
    table = pq.read_table(tmp_path / "out" / "rows.parquet")
    assert table.select(["row", "origin_row"]).to_pylist() == [{"row": 1, "origin_row": 2999}]


def diff(tmp_path: Path, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> CompareResult:
    files = []
    for name, rows in (("before", before), ("after", after)):
        rows_file = tmp_path / f"{name}.parquet"
        validate(write(tmp_path, *rows), ValidateSpec(), rows_file=rows_file)
        files.append(rows_file)
    one, two = files
    return compare(CompareSpec(), one, two)


def test_what_differs_between_two_versions(tmp_path: Path) -> None:
    before = [
        chat("stays"),
        chat("goes", "x"),
        chat("q", "old"),
        chat(f"{LONG} {LONG} a"),
        chat("twice"),
        chat("twice"),
    ]
    after = [chat(f"{LONG} {LONG} b"), chat("twice"), chat("q", "new"), chat("comes", "y"), chat("stays")]
    found = diff(tmp_path, before, after)
    assert (found.same, found.added, found.removed, found.changed) == (2, 1, 2, 2)
    assert [row.after_row for row in found.added_rows] == [4]
    assert [row.before_row for row in found.removed_rows] == [2, 6]
    assert [(row.before_row, row.after_row) for row in found.changed_rows] == [(4, 1), (3, 3)]
    assert found.changed_rows[1].before.endswith("old") and found.changed_rows[1].after.endswith("new")


def test_a_change_beside_the_conversation_is_a_change(tmp_path: Path) -> None:
    found = diff(tmp_path, [chat("q", note="a")], [chat("q", note="b")])
    assert (found.same, found.changed, found.added, found.removed) == (0, 1, 0, 0)


def test_a_derived_row_is_compared_with_the_one_it_came_from(tmp_path: Path) -> None:
    rows_file = tmp_path / "before.parquet"
    validate(write(tmp_path, chat("mail me at a@b.example"), chat("b")), ValidateSpec(), rows_file=rows_file)
    run(tmp_path, rows_file, ops=[{"op": "mask", "kinds": ["email"]}])
    found = compare(CompareSpec(origin=0), rows_file, tmp_path / "out" / "rows.parquet")
    assert (found.same, found.changed, found.added, found.removed) == (1, 1, 0, 0)


WORDS = st.sampled_from(["a", "b ", LONG, f"{LONG} z", "mail x@y.example", "<|im_end|>c"])
SOME = st.lists(st.tuples(WORDS, WORDS, st.sampled_from(["A", "B"])), min_size=1, max_size=8)
OPERATIONS: list[dict[str, Any]] = [
    {"op": "drop_duplicates"},
    {"op": "drop_duplicates", "near": True},
    {"op": "mask", "kinds": ["email"]},
    {"op": "trim", "what": ["space", "residue"]},
    {"op": "filter", "field": "extra.customer", "equals": "A"},
    {"op": "drop_containing", "text": "X@Y"},
    {"op": "append", "source": 1},
    {"op": "drop_overlap", "source": 1},
    {"op": "take_side", "split": {"share": 0.5}, "side": "train"},
    {"op": "drop_rows", "rows": [{"row": 1}]},
    {"op": "drop_problems", "codes": ["template_residue"]},
]
in_one_folder = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@in_one_folder
@given(SOME, SOME, st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=4))
def test_every_row_is_accounted_for(
    tmp_path: Path, one: list[Any], two: list[Any], ops: list[dict[str, Any]]
) -> None:
    sources = [[chat(q, a, customer=customer) for q, a, customer in rows] for rows in (one, two)]
    files = [write(tmp_path, *rows, name=f"{at}.jsonl") for at, rows in enumerate(sources)]
    result = run(tmp_path, *files, ops=ops)
    left = len(one)
    for op, done in zip(ops, result.operations, strict=True):
        assert done.rows_in == left
        assert done.rows_out == left + len(two) if op["op"] == "append" else done.rows_out <= left
        assert done.changed <= done.rows_out
        left = done.rows_out
    assert result.report is not None and result.report.rows == left
    table = pq.read_table(tmp_path / "out" / "rows.parquet").to_pylist()
    assert len(table) == result.report.valid
    if not {"mask", "trim"} & {op["op"] for op in ops}:
        for row in table:
            came_from = sources[row["origin"]][row["origin_row"] - 1]
            assert [m["content"] for m in row["messages"]] == [m["content"] for m in came_from["messages"]]


@in_one_folder
@given(SOME, SOME)
def test_every_difference_is_counted_once(tmp_path: Path, one: list[Any], two: list[Any]) -> None:
    before, after = ([chat(q, a, customer=customer) for q, a, customer in rows] for rows in (one, two))
    found = diff(tmp_path, before, after)
    assert found.same + found.changed + found.removed == len(before)
    assert found.same + found.changed + found.added == len(after)
    whole = [Counter(map(json.dumps, rows)) for rows in (before, after)]
    assert found.same == (whole[0] & whole[1]).total()
    assert diff(tmp_path, after, before).same == found.same


def test_in_the_limited_child(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    source = {"name": "a", "sha256": NOBODY}
    spec = {"sources": [source], "operations": [{"op": "drop_containing", "text": "three"}]}
    told: list[int] = []
    result = derive_in_child(DeriveSpec.model_validate(spec), [write(tmp_path, *ROWS)], out, told.append)
    assert result.report is not None and result.report.valid == 4
    rows_file = out / "rows.parquet"
    assert compare_in_child(CompareSpec(), rows_file, rows_file).same == 4

    everything = {**spec, "operations": [{"op": "filter", "shortest": 10_000}]}
    derive_in_child(DeriveSpec.model_validate(everything), [write(tmp_path, *ROWS)], out)
    assert list(out.iterdir()) == []  # no row is left to train on

    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and nothing")
    with pytest.raises(ChildFailed, match="cannot be read") as failed:
        derive_in_child(DeriveSpec.model_validate(spec), [broken], out)
    assert failed.value.code == "damaged_parquet"
    with pytest.raises(ChildFailed) as failed:
        derive_in_child(
            DeriveSpec.model_validate({**spec, "memory_bytes": 2**26}), [write(tmp_path, *ROWS)], out
        )
    assert failed.value.code == "memory_limit"


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "append", "source": 1},
        {"op": "filter"},
        {"op": "filter", "field": "nothing", "contains": "x"},
        {"op": "drop_containing", "text": "  "},
        {"op": "unknown"},
    ],
)
def test_an_operation_that_makes_no_sense_is_refused(operation: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DeriveSpec.model_validate({"sources": [{"name": "a", "sha256": NOBODY}], "operations": [operation]})
