"""The fast way for ordinary lines. It says "I do not know" (None) rather than anything that the exact checks
would say differently; those take over, line by line."""

import re
from typing import cast

import msgspec
import numpy as np

from workers.data.chat import TOOLS, ChatMessage, Extra, Role
from workers.data.think import CLOSE, OPEN, split_think

_decode = msgspec.json.Decoder().decode
_SPACED_KEY = re.compile(rb'"[ \t\r\n]+:|\\\\":')
_SCALARS = frozenset({str, int, float, bool, type(None)})
_READ = frozenset({"messages", "prompt", "completion"})
MAX_NESTED = 16
"""Levels in a field beside the messages; what is deeper, the exact checks look at."""
_MESSAGE = frozenset({"role", "content", "reasoning_content", "reasoning"})
Fast = tuple[list[ChatMessage], Extra]


def key_ends(block: bytes) -> tuple[list[int], list[bool]]:
    """For each line how many quotation marks end a key (`":`), and whether keys may end otherwise."""
    text = np.frombuffer(block, dtype=np.uint8)
    colons, ends = np.flatnonzero(text == ord(":")), np.flatnonzero(text == ord("\n"))
    before, second, third = text[colons - 1], text[colons - 2], text[colons - 3]
    escaped = (before == ord('"')) & (second == ord("\\"))
    doubts = (before <= ord(" ")) | (escaped & (third == ord("\\")))
    lines = np.searchsorted(ends, colons)
    counts = np.bincount(lines[(before == ord('"')) & ~escaped], minlength=len(ends) + 1)
    doubtful = np.bincount(lines[doubts], minlength=len(ends) + 1) > 0
    return counts.tolist(), doubtful.tolist()


def fast_row(data: bytes, ends: int, doubtful: bool) -> Fast | None:
    """The messages of a line in one of the two plain spellings, and the fields beside them.

    `ends` and `doubtful`: what `key_ends` says about it. The line must not hold an escaped NUL.
    """
    if doubtful and _SPACED_KEY.search(data) is not None:
        return None
    try:
        row = _decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None
    if type(row) is not dict or TOOLS in row:
        return None
    if "messages" in row:
        found, keys = fast_messages(row), len(row)
        keys += sum(map(len, row["messages"])) if found else 0
    else:
        found, keys = _paired(row), len(row)
    if found is None:
        return None
    extra: Extra = {}
    if len(row) > 1:
        extra = {key: value for key, value in row.items() if key not in _READ}
    for value in extra.values():
        if type(value) not in _SCALARS:
            inside = _keys_inside(value, MAX_NESTED)
            if inside is None:
                return None
            keys += inside
    # With fewer keys read than the text has, one stood twice and was lost in reading.
    return (found, extra) if ends == keys else None


def _keys_inside(value: object, levels: int) -> int | None:
    """Keys of the objects in `value`; None when it is nested deeper than `levels`."""
    if not isinstance(value, dict | list):
        return 0
    if not levels:
        return None
    keys = len(value) if isinstance(value, dict) else 0
    for item in value.values() if isinstance(value, dict) else value:
        inside = _keys_inside(item, levels - 1)
        if inside is None:
            return None
        keys += inside
    return keys


def fast_messages(row: dict[str, object]) -> list[ChatMessage] | None:
    """The messages of a row whose `messages` have nothing to be said about them.

    Those that already stand as they should are the row's own, not copies.
    """
    messages = row["messages"]
    if type(messages) is not list or not messages or "prompt" in row or "completion" in row:
        return None
    found: list[ChatMessage] = []
    due = "user"
    for message in messages:
        if type(message) is not dict or not _says_something(message.get("content")):
            return None
        role, content, fields = message.get("role"), message["content"], len(message)
        if role == due == "user" and fields == 2:
            found.append(_plain(message, role, content))
            due = "assistant"
        elif role == due == "assistant":
            answer = _answer(message, content, fields)
            if answer is None:
                return None
            found.append(answer)
            due = "user"
        elif fields > 2 and not message.keys() <= _MESSAGE:
            return None
        elif role == "user" == due or (role == "system" and not found):
            found.append({"role": role, "content": content})
            due = "assistant" if role == "user" else due
        else:
            return None
    return found if due == "user" and found[-1]["role"] == "assistant" else None


def _says_something(content: object) -> bool:
    return type(content) is str and content != "" and not content.isspace()


def _plain(message: dict[str, object], role: Role, content: str) -> ChatMessage:
    """A message of role and content alone; in this order, as its hash goes by its bytes."""
    if next(iter(message)) == "role":
        return cast(ChatMessage, message)
    return {"role": role, "content": content}


def _paired(row: dict[str, object]) -> list[ChatMessage] | None:
    question, content = row.get("prompt"), row.get("completion")
    if type(question) is not str or type(content) is not str or not question.strip() or not content.strip():
        return None
    answer = _answer({"role": "assistant", "content": content}, content, 2)
    return None if answer is None else [{"role": "user", "content": question}, answer]


def _answer(message: dict[str, object], content: str, fields: int) -> ChatMessage | None:
    """An assistant turn whose reasoning, if any, is told once and properly. `content` is not blank."""
    reasoning = ""
    if fields > 2:
        if fields > 3:
            return None
        given = message.get("reasoning_content", message.get("reasoning", _NOT_THERE))
        if given is not None and type(given) is not str:
            return None
        reasoning = given.strip() if isinstance(given, str) else ""
    if "think>" in content:
        inline = split_think(content)
        if (
            not inline.closed
            or OPEN in inline.answer
            or CLOSE in inline.answer
            or not inline.reasoning
            or not inline.answer
            or reasoning
        ):
            return None
        content, reasoning = inline.answer, inline.reasoning
    elif fields == 2:
        return _plain(message, "assistant", content)
    if reasoning:
        return {"role": "assistant", "content": content, "reasoning_content": reasoning}
    return {"role": "assistant", "content": content}


_NOT_THERE = object()
