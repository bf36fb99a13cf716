"""One chat, normalised: the shape that every stage after reading works with."""

import json
from typing import Literal, NotRequired, TypedDict

Role = Literal["system", "user", "assistant"]


class ChatMessage(TypedDict):
    role: Role
    content: str
    """What the reader is meant to see; never empty."""
    reasoning_content: NotRequired[str]
    """Assistant turns only; absent when there is none."""


class Row(TypedDict):
    """One chat: a system message first or not at all, then user and assistant in turn, assistant last."""

    messages: list[ChatMessage]


def canonical(row: Row) -> bytes:
    """The same bytes for the same chat, whatever spelling the file used: what hashes and splits go by."""
    return json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
