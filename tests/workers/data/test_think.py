"""The think block is taken off and judged, whoever left it in."""

import pytest

from workers.contract import ThinkContract
from workers.data.think import judge_split, judge_text

PLAIN = ThinkContract(family="plain", history_keeps=True)
R1 = ThinkContract(family="r1_qwen", prompt_opens=True)


@pytest.mark.parametrize(
    ("text", "think", "expected"),
    [
        ("<think>why</think>\nanswer", PLAIN, ("why", "answer", "valid")),
        ("\n<think>\nwhy\n</think>\n\nanswer", PLAIN, ("why", "answer", "valid")),
        ("<think>\n\n</think>\n\nanswer", PLAIN, ("", "answer", "empty")),
        ("answer", PLAIN, ("", "answer", "missing")),
        ("<think>why and", PLAIN, ("why and", "", "truncated")),
        ("why</think>answer", R1, ("why", "answer", "valid")),
        ("</think>answer", R1, ("", "answer", "empty")),
        ("<think>why</think>answer", R1, ("why", "answer", "valid")),
        ("why and", R1, ("why and", "", "truncated")),
        ("<think>a</think>b</think>c", PLAIN, ("a", "b</think>c", "valid")),
    ],
)
def test_a_bare_engines_text(text: str, think: ThinkContract, expected: tuple[str, str, str]) -> None:
    thought = judge_text(text, think)
    assert (thought.reasoning, thought.answer, thought.state) == expected


@pytest.mark.parametrize(
    ("content", "reasoning", "finish", "expected"),
    [
        ("answer", "why", "stop", ("why", "answer", "valid")),
        ("answer", "", "stop", ("", "answer", "empty")),
        ("", "why and", "length", ("why and", "", "truncated")),
        ("ans", "why", "length", ("why", "ans", "valid")),
        ("answer", None, "stop", ("", "answer", "missing")),
    ],
)
def test_an_endpoint_that_sets_reasoning_apart(
    content: str, reasoning: str | None, finish: str, expected: tuple[str, str, str]
) -> None:
    thought = judge_split(content, reasoning, finish)
    assert (thought.reasoning, thought.answer, thought.state) == expected
