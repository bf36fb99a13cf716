"""The fast way for ordinary lines. It says "I do not know" (None) rather than anything that the exact checks
would say differently; those take over, line by line."""

import re
from typing import cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from workers.data.chat import TOOLS, ChatMessage, Extra, Role
from workers.data.think import CLOSE, OPEN, split_think

_decode = msgspec.json.Decoder().decode
_SPACED_KEY = re.compile(rb'"[ \t\r\n]+:|\\\\":')
_SCALARS = frozenset({str, int, float, bool, type(None)})
_READ = frozenset({"messages", "prompt", "completion"})
MAX_NESTED = 16
"""Levels in a field beside the messages; what is deeper, the exact checks look at."""
_MESSAGE = frozenset({"role", "content", "reasoning_content", "reasoning"})
Fast = tuple[list[ChatMessage], Extra | None]


def fast_rows(block: bytes, max_bytes: int) -> list[Fast | None]:
    """The messages of every line in one of the two plain spellings, and the fields beside them; None for a
    line that has to be looked at, such as a blank one or one longer than `max_bytes`.

    The block must not hold an escaped NUL.
    """
    text = np.frombuffer(block, dtype=np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    if not block.endswith(b"\n"):
        ends = np.append(ends, len(block))
    keys, doubtful = _key_ends(text, ends)
    lines = block.removesuffix(b"\n").split(b"\n")
    found = [_fast_row(line, count, max_bytes) for line, count in zip(lines, keys, strict=True)]
    for at in doubtful:
        if _SPACED_KEY.search(lines[at]) is not None:
            found[at] = None
    return found


def _key_ends(text: NDArray[np.uint8], ends: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """For each line how many quotation marks end a key (`":`), and the lines where keys may end otherwise."""
    colons = np.flatnonzero(text == ord(":"))
    before, second, third = text[colons - 1], text[colons - 2], text[colons - 3]
    escaped = (before == ord('"')) & (second == ord("\\"))
    doubts = (before <= ord(" ")) | (escaped & (third == ord("\\")))
    counted = np.searchsorted(colons[(before == ord('"')) & ~escaped], ends)
    return np.diff(counted, prepend=0).tolist(), np.unique(np.searchsorted(ends, colons[doubts])).tolist()


def _fast_row(line: bytes, ends: int, max_bytes: int) -> Fast | None:
    """`ends`: how many quotation marks of the line end a key."""
    row = _decoded(line) if len(line) <= max_bytes else None
    if type(row) is not dict or TOOLS in row:
        return None
    found = fast_messages(row) if "messages" in row else _paired(row)
    if found is None:
        return None
    keys = len(row)
    if "messages" in row:
        for message in row["messages"]:
            keys += len(message)
    extra = _beside(row) if len(row) > 1 else None
    inside = _keys_beside(extra) if extra else 0
    # With fewer keys read than the text has, one stood twice and was lost in reading.
    return (found, extra) if inside is not None and keys + inside == ends else None


def _decoded(line: bytes) -> object:
    try:
        return _decode(line)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None


def _beside(row: dict[str, object]) -> Extra | None:
    return {key: value for key, value in row.items() if key not in _READ} or None


def _keys_beside(extra: Extra) -> int | None:
    """Keys of the objects in the fields beside the messages; None when one is nested too deep."""
    keys = 0
    for value in extra.values():
        if type(value) not in _SCALARS:
            inside = _keys_inside(value, MAX_NESTED)
            if inside is None:
                return None
            keys += inside
    return keys


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
        content = message.get("content") if type(message) is dict else None
        if type(content) is not str or not content or content.isspace():
            return None
        role, fields = message.get("role"), len(message)
        if role == "user" == due and fields == 2:
            found.append(_plain(message, role, content))
            due = "assistant"
        elif role == "assistant" == due:
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
