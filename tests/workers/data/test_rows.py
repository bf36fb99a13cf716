"""Reading and normalising: every spelling of the same chat gives the same row."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from workers.contract import SplitSpec
from workers.data import BadRow, Row, read_rows, split_rows
from workers.data.split import is_held_out

QUESTION = {"role": "user", "content": "Two and two?"}
THOUGHTFUL = {"role": "assistant", "content": "Four.", "reasoning_content": "Add them."}


def write(tmp_path: Path, *rows: Any) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def normalised(tmp_path: Path, row: Any) -> Row:
    (found,) = read_rows(write(tmp_path, row))
    return found


@pytest.mark.parametrize(
    "answer",
    [
        {"content": "Four.", "reasoning_content": "Add them."},
        {"content": "Four.", "reasoning": "Add them."},
        {"content": "Four.", "reasoning": "Add them.", "reasoning_content": "Add them.\n"},
        {"content": "<think>Add them.</think>Four."},
        {"content": "<think>\nAdd them.\n</think>\n\nFour."},
        {"content": "\n<think>Add them.</think>\nFour.", "reasoning": None},
        {"content": "Add them.\n</think>\n\nFour."},
        {
            "content": [
                {"type": "text", "text": "<think>Add them.</think>"},
                {"type": "text", "text": "Four."},
            ]
        },
    ],
)
def test_reasoning_means_the_same_in_every_spelling(tmp_path: Path, answer: dict[str, Any]) -> None:
    row = normalised(tmp_path, {"messages": [QUESTION, {"role": "assistant", **answer}]})
    assert row == {"messages": [QUESTION, THOUGHTFUL]}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Two and two?", "completion": "<think>Add them.</think>Four."},
        {"prompt": [QUESTION], "completion": [THOUGHTFUL]},
        {"prompt": [QUESTION], "completion": "<think>Add them.</think>Four.", "id": 7},
    ],
)
def test_prompt_and_completion_are_a_chat(tmp_path: Path, row: dict[str, Any]) -> None:
    assert normalised(tmp_path, row) == {"messages": [QUESTION, THOUGHTFUL]}


def test_an_empty_think_block_is_no_reasoning(tmp_path: Path) -> None:
    row = normalised(
        tmp_path, {"messages": [QUESTION, {"role": "assistant", "content": "<think>\n\n</think>\n\nFour."}]}
    )
    assert row["messages"][1] == {"role": "assistant", "content": "Four."}


def test_text_that_is_trained_is_not_altered(tmp_path: Path) -> None:
    content = "  Vier…\u2028 =SUM(A1)\t\r\n\n"
    row = normalised(tmp_path, {"messages": [QUESTION, {"role": "assistant", "content": content}]})
    assert row["messages"][1]["content"] == content


def test_a_byte_order_mark_windows_line_ends_and_blank_lines_are_accepted(tmp_path: Path) -> None:
    line = json.dumps({"messages": [QUESTION, THOUGHTFUL]}).encode()
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + line)
    assert len(list(read_rows(file))) == 2


def test_a_bad_row_is_raised_with_its_place(tmp_path: Path) -> None:
    file = write(tmp_path, {"messages": [QUESTION, THOUGHTFUL]}, {"messages": [QUESTION]})
    with pytest.raises(BadRow, match="Row 2, messages: This chat has no assistant message") as caught:
        list(read_rows(file))
    assert caught.value.problems[0].code == "no_answer"


def rows(count: int) -> list[Row]:
    return [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}"}]}
        for n in range(count)
    ]


def test_a_split_is_the_same_in_every_order_and_loses_nothing() -> None:
    split = SplitSpec(share=0.2, seed=3)
    train, heldout = split_rows(rows(500), split)
    assert len(train) + len(heldout) == 500
    assert 60 < len(heldout) < 140
    backwards_train, backwards_heldout = split_rows(reversed(rows(500)), split)
    assert (backwards_train[::-1], backwards_heldout[::-1]) == (train, heldout)
    assert all(is_held_out(row, split) for row in heldout)


def test_a_split_depends_on_its_seed_and_share() -> None:
    sides = [tuple(is_held_out(row, SplitSpec(share=0.5, seed=seed)) for row in rows(50)) for seed in (1, 2)]
    assert sides[0] != sides[1]
    assert split_rows(rows(50), SplitSpec(share=0.0))[1] == []
    smaller = {row["messages"][0]["content"] for row in split_rows(rows(500), SplitSpec(share=0.1))[1]}
    larger = {row["messages"][0]["content"] for row in split_rows(rows(500), SplitSpec(share=0.2))[1]}
    assert smaller < larger


def test_duplicates_stay_on_one_side() -> None:
    twice = [*rows(100), *rows(100)]
    train, heldout = split_rows(twice, SplitSpec(share=0.5))
    assert not {row["messages"][0]["content"] for row in train} & {
        row["messages"][0]["content"] for row in heldout
    }
    assert set(Counter(row["messages"][0]["content"] for row in heldout).values()) == {2}
