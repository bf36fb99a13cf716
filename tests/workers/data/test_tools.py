"""Chats with calls of tools: read, checked, kept, searched and masked like any other text."""

import json
from pathlib import Path
from typing import Any

import pytest

from workers.contract import DeriveSource, DeriveSpec, DropContaining, Mask, ValidateSpec
from workers.data import read_rows, validate
from workers.data.derive import derive

TOOLS = [{"type": "function", "function": {"name": "price", "parameters": {"type": "object"}}}]
ASKED = {"role": "user", "content": "What is a cat?"}
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "price", "arguments": '{"of": "jo@example.org"}'},
}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "12"}
OTHER_RESULT = {**RESULT, "tool_call_id": "x"}
ANSWER = {"role": "assistant", "content": "Twelve."}
FLAT = {"id": "c1", "name": "price", "arguments": {"of": "jo@example.org"}}


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    file = folder / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def row(*messages: dict[str, Any], **beside: Any) -> dict[str, Any]:
    return {"messages": list(messages), **beside}


def test_calls_and_results_are_kept_and_read_back(tmp_path: Path) -> None:
    whole = row(ASKED, CALLS, RESULT, ANSWER, tools=TOOLS, id=7)
    file, rows_file = write(tmp_path, whole, row(ASKED, ANSWER)), tmp_path / "rows.parquet"
    report = validate(file, ValidateSpec(), rows_file=rows_file)
    assert (report.valid, report.errors) == (2, []) and report.doctor is not None
    assert report.reading is not None and report.reading.mapping is not None
    assert report.reading.mapping.name == "OpenAI chat with tools"
    assert [problem.field for problem in report.warnings] == ["id"]
    assert report.doctor.personal["email"].places == ["row 1, messages[1]"]
    for path in (file, rows_file):
        first, second = read_rows(path)
        assert [message["role"] for message in first["messages"]] == [
            "user",
            "assistant",
            "tool",
            "assistant",
        ]
        assert first["messages"][1] == {"role": "assistant", "content": "", "tool_calls": [FLAT]}
        assert first["messages"][2] == {"role": "tool", "content": "12", "tool_call_id": "c1"}
        assert first["tools"] == TOOLS and "tools" not in second
    again = validate(rows_file, ValidateSpec())
    assert (again.valid, again.errors) == (2, [])


@pytest.mark.parametrize(
    ("code", "field", "bad"),
    [
        ("role_order", "messages[1].role", row(ASKED, RESULT, ANSWER)),
        ("role_order", "messages[2].role", row(ASKED, CALLS, ANSWER)),
        ("role_order", "messages[2].role", row(ASKED, CALLS, RESULT)),
        ("unknown_call", "messages[2].tool_call_id", row(ASKED, CALLS, OTHER_RESULT, ANSWER)),
        ("bad_tool_call", "messages[1].tool_calls[0]", row(ASKED, {**CALLS, "tool_calls": [{}]})),
        ("bad_tool_call", "messages[1].tool_calls", row(ASKED, {**ANSWER, "tool_calls": "price()"})),
        (
            "not_json",
            "messages[1].tool_calls[0].function.arguments",
            row(ASKED, {**CALLS, "tool_calls": [{"function": {"name": "price", "arguments": "{"}}]}),
        ),
        (
            "bad_unicode",
            "messages[1].tool_calls[0]",
            row(ASKED, {**CALLS, "tool_calls": [{"name": "p", "arguments": {"a": ["\ud800"]}}]}),
        ),
        ("bad_tools", "tools", row(ASKED, ANSWER, tools={"name": "price"})),
        ("bad_tools", "tools[0]", row(ASKED, ANSWER, tools=[{"name": 1}])),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_call_is_said_with_its_place(
    tmp_path: Path, code: str, field: str, bad: dict[str, Any]
) -> None:
    report = validate(write(tmp_path, row(ASKED, ANSWER), bad), ValidateSpec())
    assert [(problem.row, problem.code, problem.field) for problem in report.errors][-1] == (2, code, field)
    assert report.valid == 1


def test_a_tool_that_the_row_does_not_name_is_a_warning(tmp_path: Path) -> None:
    other = [{"type": "function", "function": {"name": "weight"}}]
    file = write(tmp_path, row(ASKED, CALLS), row(ASKED, CALLS, tools=other), row(ASKED, CALLS, tools=TOOLS))
    report = validate(file, ValidateSpec())
    assert [
        (warning.row, warning.code) for warning in report.warnings if warning.code != "duplicate_row"
    ] == [
        (1, "undeclared_tool"),
        (2, "undeclared_tool"),
    ]
    assert report.doctor is not None and report.doctor.answers == [("call of price", 3)]


def test_arguments_are_masked_and_erased_like_any_text(tmp_path: Path) -> None:
    file = write(tmp_path, row(ASKED, CALLS, RESULT, ANSWER, tools=TOOLS), row(ASKED, ANSWER))
    source = DeriveSource(name="chats", sha256="0" * 64)
    out = tmp_path / "masked"
    out.mkdir()
    derive(DeriveSpec(sources=[source], operations=[Mask(kinds=["email"])]), sources=[file], out=out)
    first, _ = read_rows(out / "rows.parquet")
    assert first["messages"][1]["tool_calls"][0]["arguments"] == {"of": "[EMAIL]"}
    assert first["tools"] == TOOLS
    out = tmp_path / "erased"
    out.mkdir()
    drop = DropContaining(text="jo@example.org")
    derive(DeriveSpec(sources=[source], operations=[drop]), sources=[file], out=out)
    assert len(list(read_rows(out / "rows.parquet"))) == 1


def test_roles_of_sharegpt_tools_are_known(tmp_path: Path) -> None:
    said = [{"from": "human", "value": "q"}, {"from": "observation", "value": "12"}]
    report = validate(write(tmp_path, {"conversations": said}), ValidateSpec())
    assert {problem.code for problem in report.errors} == {"no_answer", "nothing_trainable"}
