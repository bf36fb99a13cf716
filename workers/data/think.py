"""Reasoning beside an answer, as text: written, taken off and judged here alone."""

from typing import Literal, NamedTuple

from workers.contract import ThinkContract
from workers.data.chat import ChatMessage

OPEN = "<think>"
CLOSE = "</think>"

ThinkState = Literal["valid", "empty", "missing", "truncated"]


class Split(NamedTuple):
    """An answer taken apart."""

    reasoning: str
    """Empty when there is none."""
    answer: str
    closed: bool
    """False when a block was opened and never closed; the text is then left whole in `answer`."""


class Thought(NamedTuple):
    """A generation taken apart and judged."""

    reasoning: str
    answer: str
    """What a person reads; empty when the reasoning never ended."""
    state: ThinkState
    """`valid`: reasoning, closed.

    `empty`: a block with nothing in it. `missing`: no block. `truncated`: never closed.
    """


class Block(NamedTuple):
    """The tags of a base with the white space that its family puts around them."""

    opening: str
    closing: str

    def around(self, reasoning: str) -> str:
        return self.opening + reasoning + self.closing


def block_of(think: ThinkContract) -> Block:
    """Reasoning bases put the tags on lines of their own; a plain base has no custom to follow."""
    inside, after = ("", "\n") if think.family == "plain" else ("\n", "\n\n")
    return Block(think.open + inside, inside + think.close + after)


def with_reasoning(message: ChatMessage, think: ThinkContract) -> str:
    """A message's text as the base would have written it, reasoning first."""
    reasoning = message.get("reasoning_content", "")
    return (block_of(think).around(reasoning) if reasoning else "") + message["content"]


def split_think(text: str, opening: str = OPEN, closing: str = CLOSE) -> Split:
    """Take the think block off the start of an answer. The first closing tag ends it, as in engines' parsers.

    A block may lack its opening tag: bases whose prompt already opens it write only the closing one. White
    space between the tags and the texts belongs to the template, not to the data, and is dropped.
    """
    before, closed, after = text.partition(closing)
    opened = before.lstrip().startswith(opening)
    if not closed:
        return Split("", text, closed=not opened)
    return Split(before.lstrip().removeprefix(opening).strip(), after.lstrip(), closed=True)


def judge_text(text: str, think: ThinkContract) -> Thought:
    """Split a whole generation, as a bare engine returns it.

    A generation whose prompt already opened the block starts inside it.
    """
    split = split_think(text, think.open, think.close)
    if think.close in text:
        return _judged(split.reasoning, split.answer)
    if think.prompt_opens or not split.closed:
        return Thought(text.lstrip().removeprefix(think.open).strip(), "", "truncated")
    return Thought("", text.strip(), "missing")


def judge_split(content: str, reasoning: str | None, finish_reason: str) -> Thought:
    """Judge an answer whose endpoint has set the reasoning apart; None says that there was no think block."""
    if reasoning is None:
        return Thought("", content.strip(), "missing")
    if reasoning.strip() and not content.strip() and finish_reason == "length":
        return Thought(reasoning.strip(), "", "truncated")
    return _judged(reasoning, content)


def _judged(reasoning: str, answer: str) -> Thought:
    reasoning = reasoning.strip()
    return Thought(reasoning, answer.strip(), "valid" if reasoning else "empty")
