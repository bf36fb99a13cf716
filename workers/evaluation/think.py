"""Takes the reasoning off an answer and judges it, by the think contract of the base."""

from dataclasses import dataclass
from typing import Literal

from workers.contract import ThinkContract

ThinkState = Literal["valid", "empty", "missing", "truncated"]


@dataclass(frozen=True)
class Thought:
    """An answer taken apart."""

    reasoning: str
    answer: str
    """What a person reads; empty when the reasoning never ended."""
    state: ThinkState
    """`valid`: reasoning, closed.

    `empty`: a block with nothing in it. `missing`: no block. `truncated`: never closed.
    """


def split_text(text: str, think: ThinkContract) -> Thought:
    """Split a whole generation, as a bare engine returns it.

    The first closing tag ends the reasoning, as in the engine's own parsers. A generation whose prompt
    already opened the block starts inside it.
    """
    before, closed, after = text.partition(think.close)
    opened = before.lstrip().startswith(think.open)
    if closed:
        return _judged(before.lstrip().removeprefix(think.open), after)
    if opened or think.prompt_opens:
        return Thought(before.lstrip().removeprefix(think.open).strip(), "", "truncated")
    return Thought("", text.strip(), "missing")


def read_split(content: str, reasoning: str | None, finish_reason: str) -> Thought:
    """Judge an answer whose endpoint has set the reasoning apart; None says that there was no think block."""
    if reasoning is None:
        return Thought("", content.strip(), "missing")
    if reasoning.strip() and not content.strip() and finish_reason == "length":
        return Thought(reasoning.strip(), "", "truncated")
    return _judged(reasoning, content)


def _judged(reasoning: str, answer: str) -> Thought:
    reasoning = reasoning.strip()
    return Thought(reasoning, answer.strip(), "valid" if reasoning else "empty")
