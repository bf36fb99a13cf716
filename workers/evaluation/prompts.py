"""From rows to prompts: what is asked, and the answer that is expected."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

from workers.contract import SplitSpec, ThinkContract
from workers.data.chat import Tools
from workers.data.rows import BadRow, ChatMessage, Row, read_rows
from workers.data.split import is_held_out
from workers.data.think import with_reasoning
from workers.data.tools import as_openai
from workers.evaluation.errors import EvaluationError


@dataclass(frozen=True)
class Prompt:
    messages: list[dict[str, Any]]
    expected: str
    """The last assistant turn, without reasoning."""
    length: int
    """Characters of the whole expected reply, its reasoning included."""
    tools: Tools = field(default_factory=list)

    @property
    def shown(self) -> list[dict[str, str]]:
        """The messages for people, calls as text."""
        return [
            {
                "role": message["role"],
                "content": message["content"] + "".join(map(_in_words, message.get("tool_calls", []))),
            }
            for message in self.messages
        ]


def _in_words(call: dict[str, Any]) -> str:
    return f"\n{call['function']['name']}({call['function']['arguments']})"


def read_prompts(path: Path, *, split: SplitSpec | None, max_rows: int, think: ThinkContract) -> list[Prompt]:
    """The first `max_rows` prompts of the file, or of its held-out side when `split` is given.

    Rows that end in the call of a tool are left out: there is no text to compare.

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
    return [_prompt(row, think) for row in rows]


def _chosen(rows: Iterable[Row], split: SplitSpec | None) -> Iterator[Row]:
    return (
        row for row in rows if row["messages"][-1]["content"] and (split is None or is_held_out(row, split))
    )


def _prompt(row: Row, think: ThinkContract) -> Prompt:
    *before, last = row["messages"]
    return Prompt(
        messages=[_as_sent(message, think) for message in before],
        expected=last["content"].strip(),
        length=len(with_reasoning(last, think)),
        tools=row.get("tools", []),
    )


def _as_sent(message: ChatMessage, think: ThinkContract) -> dict[str, Any]:
    """A message as the chat endpoint takes it; earlier reasoning only where the base's history keeps it."""
    content = with_reasoning(message, think) if think.history_keeps else message["content"]
    sent = as_openai(message, content)
    for call in cast(list[dict[str, Any]], sent.get("tool_calls", [])):
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return sent
