"""From rows to prompts: what is asked, and the answer that is expected."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from workers.contract import SplitSpec, ThinkContract
from workers.data.rows import BadRow, ChatMessage, Row, read_rows
from workers.data.split import is_held_out
from workers.data.think import with_reasoning
from workers.evaluation.errors import EvaluationError


@dataclass(frozen=True)
class Prompt:
    messages: list[dict[str, str]]
    expected: str
    """The last assistant turn, without reasoning."""
    length: int
    """Characters of the whole expected reply, its reasoning included."""


def read_prompts(path: Path, *, split: SplitSpec | None, max_rows: int, think: ThinkContract) -> list[Prompt]:
    """The first `max_rows` prompts of the file, or of its held-out side when `split` is given.

    Raises EvaluationError `bad_row` and `no_rows`, both the user's.
    """
    try:
        by_group = split is not None and bool(split.group)
        rows = list(islice(_chosen(read_rows(path, extra=by_group), split), max_rows))
    except BadRow as error:
        raise EvaluationError("bad_row", str(error), fault="user") from None
    if not rows:
        where = "the held-out side of the data" if split else "the evaluation data"
        raise EvaluationError(
            "no_rows", f"There is no row in {where}; hold out a larger share or add rows.", fault="user"
        )
    return [_prompt(row["messages"], think) for row in rows]


def _chosen(rows: Iterable[Row], split: SplitSpec | None) -> Iterator[Row]:
    return (row for row in rows if split is None or is_held_out(row, split))


def _prompt(messages: list[ChatMessage], think: ThinkContract) -> Prompt:
    *before, last = messages
    return Prompt(
        messages=[_as_sent(message, think) for message in before],
        expected=last["content"].strip(),
        length=len(with_reasoning(last, think)),
    )


def _as_sent(message: ChatMessage, think: ThinkContract) -> dict[str, str]:
    """A message as the chat endpoint takes it; earlier reasoning only where the base's history keeps it."""
    content = with_reasoning(message, think) if think.history_keeps else message["content"]
    return {"role": message["role"], "content": content}
