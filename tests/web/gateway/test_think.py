"""Reasoning and content, whatever pieces the text comes in."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.gateway.think import ThinkSplitter, split_text
from workers.contract import ThinkContract

PLAIN = ThinkContract(family="plain", history_keeps=True)
OPENED = ThinkContract(family="r1_qwen", prompt_opens=True)
OTHER_TAGS = ThinkContract(family="plain", open="<|begin|>", close="<|end|>")

# Pieces of tags on their own, so that the texts are full of what nearly is a tag.
TEXTS = st.lists(
    st.sampled_from(
        [
            "<think>",
            "</think>",
            "<thi",
            "</t",
            "<",
            ">",
            "\n",
            " ",
            "a",
            "nk>",
            "{}",
            "é",
            "<|begin|>",
            "<|end|>",
        ]
    )
).map("".join)


def in_pieces(contract: ThinkContract, pieces: list[str]) -> tuple[str, str]:
    splitter = ThinkSplitter(contract)
    parts = [*map(splitter.feed, pieces), splitter.finish()]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


@given(text=TEXTS, cuts=st.lists(st.integers(0, 60)), contract=st.sampled_from([PLAIN, OPENED, OTHER_TAGS]))
def test_any_pieces_give_the_same_result(text: str, cuts: list[int], contract: ThinkContract) -> None:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    pieces = [text[start:end] for start, end in pairwise(places)]
    assert in_pieces(contract, pieces) == split_text(contract, text) == in_pieces(contract, list(text))


@given(text=TEXTS, contract=st.sampled_from([PLAIN, OPENED]))
def test_nothing_is_invented_or_moved(text: str, contract: ThinkContract) -> None:
    reasoning, content = split_text(contract, text)
    left = iter(text)
    assert all(character in left for character in reasoning + content)
    assert text.endswith(content)
    if contract is PLAIN and not text.lstrip().startswith("<think>"):
        assert (reasoning, content) == ("", text)


@given(thought=st.text(alphabet="ab<> \n/think"), contract=st.sampled_from([PLAIN, OPENED]))
def test_a_truncated_block_never_lands_in_the_content(thought: str, contract: ThinkContract) -> None:
    if "</think>" not in thought:
        assert split_text(contract, "<think>" + thought)[1] == ""


@pytest.mark.parametrize(
    ("contract", "text", "expected"),
    [
        (PLAIN, "<think>\nBecause.\n</think>\n\n{}", ("Because.\n", "{}")),
        (PLAIN, "\n <think>x</think>y", ("x", "y")),
        (PLAIN, "Just an answer.", ("", "Just an answer.")),
        (PLAIN, "  indented", ("", "  indented")),
        (PLAIN, "Write <think> in HTML.", ("", "Write <think> in HTML.")),
        (PLAIN, "<think></think>\n\nno", ("", "no")),
        (PLAIN, "<think>a</think>\n<think>b</think> c", ("ab", "c")),
        (PLAIN, "<think>never closed", ("never closed", "")),
        (PLAIN, "<think>nearly closed</thi", ("nearly closed</thi", "")),
        (PLAIN, "<thi", ("", "<thi")),
        (PLAIN, "", ("", "")),
        (OPENED, "Because.</think>\n\n{}", ("Because.", "{}")),
        (OPENED, "<think>\nBecause.</think>{}", ("Because.", "{}")),
        (OPENED, "cut off in the middle", ("cut off in the middle", "")),
        (OPENED, "\n", ("", "")),
        (OTHER_TAGS, "<|begin|>a<|end|> <think>b", ("a", "<think>b")),
    ],
)
def test_examples(contract: ThinkContract, text: str, expected: tuple[str, str]) -> None:
    assert split_text(contract, text) == expected


def test_a_constrained_answer_begins_outside_of_the_block_that_the_prompt_opened() -> None:
    assert split_text(OPENED, '{"a": 1}', prompt_opens=False) == ("", '{"a": 1}')


def test_text_is_passed_on_as_soon_as_it_is_certain() -> None:
    splitter = ThinkSplitter(PLAIN)
    assert splitter.feed("<th") == ("", "")
    assert splitter.feed("ink>So") == ("So", "")
    assert splitter.feed(" it</") == (" it", "")
    assert splitter.feed("i></thi") == ("</i>", "")
    assert splitter.feed("nk>\n") == ("", "")
    assert splitter.feed("Yes <") == ("", "Yes <")
