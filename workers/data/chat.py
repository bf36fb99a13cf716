"""One chat, normalised: the shape that every stage after reading works with."""

import json
from typing import Literal, NotRequired, TypedDict, cast

TOOLS = "tools"
"""The field beside the conversation that says what the model may call."""
Role = Literal["system", "user", "assistant", "tool"]
Extra = dict[str, object]
Tools = list[dict[str, object]]
"""What a model may call, as OpenAI writes it: `{"type": "function", "function": {"name": ..}}`."""


class ToolCall(TypedDict):
    """One function that an assistant turn calls."""

    id: NotRequired[str]
    name: str
    arguments: dict[str, object]


class ChatMessage(TypedDict):
    role: Role
    content: str
    """What the reader is meant to see; empty only beside `tool_calls` and where a tool gave nothing back."""
    reasoning_content: NotRequired[str]
    """Assistant turns only; absent when there is none."""
    tool_calls: NotRequired[list[ToolCall]]
    """Assistant turns only; never empty."""
    tool_call_id: NotRequired[str]
    """Tool messages only: which call this is the result of."""


class Row(TypedDict):
    """One chat: a system message first or not at all, then user and assistant in turn, assistant last.

    After an assistant's calls come the tools' messages, and then the assistant again.
    """

    messages: list[ChatMessage]
    extra: NotRequired[Extra]
    """Fields beside the conversation, such as a customer or `tools`; absent when nobody asked for them."""
    tools: NotRequired[Tools]
    """What the model may call; absent where the row names nothing."""


def canonical(row: Row) -> bytes:
    """The same bytes for the same chat, whatever spelling the file used: what hashes and splits go by.

    Fields beside the conversation do not count.
    """
    chat = {"messages": row["messages"]}
    return json.dumps(chat, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def texts_of(message: ChatMessage) -> list[str]:
    """Every text of a message: what is said, the reasoning, and its calls as JSON."""
    texts = [message["content"]]
    if "reasoning_content" in message:
        texts.append(message["reasoning_content"])
    if "tool_calls" in message:
        texts.append(json.dumps(message["tool_calls"], ensure_ascii=False))
    return texts


def calls_of(message: ChatMessage) -> list[ToolCall]:
    return message.get("tool_calls", [])


def tools_of(extra: Extra | None) -> Tools:
    """What a checked row lets the model call; empty where it names nothing."""
    return cast(Tools, extra.get(TOOLS) or []) if extra else []
