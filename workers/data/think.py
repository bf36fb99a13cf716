"""Reasoning inside the text of an answer: `<think>..</think>` before what the reader is meant to see."""

from typing import NamedTuple

OPEN = "<think>"
CLOSE = "</think>"


class Split(NamedTuple):
    """An answer taken apart."""

    reasoning: str
    """Empty when there is none."""
    answer: str
    closed: bool
    """False when a block was opened and never closed; the text is then left whole in `answer`."""


def split_think(text: str) -> Split:
    """Take the think block off the start of an answer.

    A block may lack its opening tag: bases whose prompt already opens it write only the closing one. White
    space between the tags and the texts belongs to the template, not to the data, and is dropped.
    """
    before, closing, after = text.partition(CLOSE)
    opened = before.lstrip().startswith(OPEN)
    if not closing:
        return Split("", text, closed=not opened)
    return Split(before.lstrip().removeprefix(OPEN).strip(), after.lstrip(), closed=True)
