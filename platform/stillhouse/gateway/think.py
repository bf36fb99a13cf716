"""Splits a generation into its reasoning and its answer, by the think contract of the base.

Works on text in any pieces and gives the same result for all of them: a piece that may be the beginning of a
tag is held back until the next one decides.
"""

from collections.abc import Callable

from workers.contract import ThinkContract

Split = tuple[str, str]
"""(reasoning, content)"""


def held_back(text: str, tag: str) -> int:
    """Length of the longest end of `text` that `tag` begins with (shorter than the whole tag)."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0


class ThinkSplitter:
    """One generation. Feed it the text as it comes, then call `finish` once.

    Reasoning is what stands in think blocks at the beginning of the text; a tag that comes later is text like
    any other. A block that is never closed is reasoning to its end, so half a thought never lands in the
    content. White space after a tag belongs to neither side.
    """

    def __init__(self, contract: ThinkContract, *, prompt_opens: bool | None = None) -> None:
        self._open, self._close = contract.open, contract.close
        opened = contract.prompt_opens if prompt_opens is None else prompt_opens
        self._step: Callable[[], Split] = self._opened if opened else self._before
        self._pending = ""
        self._had_block = opened

    @property
    def had_block(self) -> bool:
        """There was a think block, with something in it or not."""
        return self._had_block

    @property
    def thinking(self) -> bool:
        """The text so far ends inside a block."""
        return self._step in (self._inside, self._opened, self._after_open)

    def feed(self, text: str) -> Split:
        """What is certain after one more piece of text."""
        self._pending += text
        reasoning, content = "", ""
        while self._pending:
            step = self._step
            more_reasoning, more_content = step()
            reasoning += more_reasoning
            content += more_content
            if self._step is step:
                break
        return reasoning, content

    def finish(self) -> Split:
        """What was still held back at the end of the text."""
        rest, self._pending = self._pending, ""
        if self._step in (self._inside, self._opened):
            return (rest if rest.strip() else ""), ""
        if self._step == self._before and self._had_block:
            rest = rest.lstrip()
        return "", rest

    def _before(self) -> Split:
        """In front of a block, if there is one: white space and the beginning of a tag decide nothing yet."""
        start = self._pending.lstrip()
        if start.startswith(self._open):
            self._pending = start[len(self._open) :]
            self._had_block = True
            self._step = self._after_open
        elif not self._open.startswith(start):
            if self._had_block:
                self._pending = start
            self._step = self._outside
        return "", ""

    def _opened(self) -> Split:
        """The prompt opened the block. Some models write the tag once more."""
        start = self._pending.lstrip()
        if start.startswith(self._open):
            self._pending = start[len(self._open) :]
            self._step = self._after_open
        elif not self._open.startswith(start):
            self._step = self._after_open
        return "", ""

    def _after_open(self) -> Split:
        """White space at the beginning of the reasoning."""
        self._pending = self._pending.lstrip()
        if self._pending:
            self._step = self._inside
        return "", ""

    def _inside(self) -> Split:
        reasoning, close, rest = self._pending.partition(self._close)
        if close:
            self._pending = rest
            self._step = self._before
            return reasoning, ""
        kept = held_back(self._pending, self._close)
        self._pending = reasoning[len(reasoning) - kept :] if kept else ""
        return (reasoning[:-kept] if kept else reasoning), ""

    def _outside(self) -> Split:
        content, self._pending = self._pending, ""
        return "", content


def split_text(contract: ThinkContract, text: str, *, prompt_opens: bool | None = None) -> Split:
    """A whole generation at once: (reasoning, content)."""
    splitter = ThinkSplitter(contract, prompt_opens=prompt_opens)
    reasoning, content = splitter.feed(text)
    last_reasoning, last_content = splitter.finish()
    return reasoning + last_reasoning, content + last_content
