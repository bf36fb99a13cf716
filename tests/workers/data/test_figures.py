"""The figures of a report against a plain count of the same rows."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workers.contract import Doctor, ValidateSpec
from workers.data import read_rows
from workers.data.validation import validate

TEXTS = st.text("ab é\u00a0\u2003\u4e2dДש9.\n", max_size=90) | st.sampled_from(["yes", "no", "a" * 200])
ROWS = st.lists(
    st.tuples(
        st.none() | TEXTS, st.lists(st.tuples(TEXTS, TEXTS, st.none() | TEXTS), min_size=1, max_size=2)
    ),
    min_size=1,
    max_size=12,
)


def as_row(system: str | None, turns: list[tuple[str, str, str | None]]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    for question, answer, reasoning in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
        if reasoning is not None:
            messages[-1]["reasoning_content"] = reasoning
    return {"messages": messages}


def histogram(lengths: list[int]) -> dict[int, int]:
    """Rows by the highest value of their power of two, as the report has it."""
    return dict(Counter(2 ** max(1, length.bit_length()) - 1 for length in lengths))


def report_on(tmp_path: Path, answers: list[str]) -> Doctor:
    file = tmp_path / "rows.jsonl"
    rows = [as_row(None, [(f"question {number}", answer, None)]) for number, answer in enumerate(answers)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    doctor = validate(file, ValidateSpec()).doctor
    assert doctor is not None
    return doctor


def test_answers_that_break_the_format_of_the_others_are_named(tmp_path: Path) -> None:
    answers = ['{"type": 1}'] * 4 + [
        ' [{"a": null}]\n',
        '{"type": 1',
        "It is of type 1.",
        *['{"type": 2}'] * 4,
    ]
    doctor = report_on(tmp_path, answers)
    assert doctor.json_answers == 9 and doctor.off_format is not None
    assert doctor.off_format.rows == 2
    assert doctor.off_format.places == ["row 6, messages[1]", "row 7, messages[1]"]
    assert any("no JSON" in reason for reason in doctor.reasons)
    assert report_on(tmp_path, ["yes", "no", "{}"]).off_format is None


def test_labels_that_differ_in_spelling_are_named(tmp_path: Path) -> None:
    doctor = report_on(tmp_path, ["Yes"] * 5 + ["no"] * 5 + ["yes.", "maybe"])
    assert doctor.alike_answers == [["Yes", "yes."]]
    assert "Answers differ only in spelling: 'Yes', 'yes.'." in doctor.reasons
    assert report_on(tmp_path, ["Yes"] * 5 + ["no"] * 5).alike_answers == []


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS)
def test_figures_are_those_of_a_plain_count(tmp_path: Path, drawn: list[Any]) -> None:
    file, rows_file = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    file.write_text("\n".join(json.dumps(as_row(*each)) for each in drawn), encoding="utf-8")
    report = validate(file, ValidateSpec(), rows_file=rows_file)
    doctor = report.doctor
    assert doctor is not None
    rows = [row["messages"] for row in read_rows(rows_file)]
    assert (report.rows, report.valid) == (len(drawn), len(rows))
    answers = [row[-1]["content"] for row in rows]
    thoughts = [row[-1].get("reasoning_content", "") for row in rows]
    asked = [sum(len(m["content"]) for m in row if m["role"] != "assistant") for row in rows]
    assert report.turns == sum(m["role"] == "assistant" for row in rows for m in row)
    assert report.with_reasoning == sum(map(bool, thoughts))
    assert report.characters == sum(
        len(m["content"]) + len(m.get("reasoning_content", "")) for row in rows for m in row
    )
    for counted, lengths in (
        (doctor.question_lengths, asked),
        (doctor.reasoning_lengths, [len(thought) for thought in thoughts if thought]),
        (doctor.answer_lengths, list(map(len, answers))),
    ):
        assert {edge: count for edge, count in counted if count} == histogram(lengths)
    assert doctor.leading_space == sum(answer[0].isspace() for answer in answers)
    assert sum(doctor.scripts.values()) == len(rows)
    whole = [json.dumps(row) for row in rows]
    assert doctor.exact_duplicates == len(whole) - len(set(whole))
    assert doctor.constant_answer == (len(rows) > 1 and len(set(answers)) == 1 and len(answers[0]) <= 80)
    assert report.samples == [{"messages": row} for row in rows[:5]]
