"""One chat, normalised: the shape that every stage after reading works with."""

import json
from typing import Literal, NotRequired, TypedDict

Role = Literal["system", "user", "assistant"]
Extra = dict[str, object]


class ChatMessage(TypedDict):
    role: Role
    content: str
    """What the reader is meant to see; never empty."""
    reasoning_content: NotRequired[str]
    """Assistant turns only; absent when there is none."""


class Row(TypedDict):
    """One chat: a system message first or not at all, then user and assistant in turn, assistant last."""

    messages: list[ChatMessage]
    extra: NotRequired[Extra]
    """Fields beside the conversation, such as a customer or `tools`; absent when nobody asked for them."""


def canonical(row: Row) -> bytes:
    """The same bytes for the same chat, whatever spelling the file used: what hashes and splits go by.

    Fields beside the conversation do not count.
    """
    chat = {"messages": row["messages"]}
    return json.dumps(chat, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
