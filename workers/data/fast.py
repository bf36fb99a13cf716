"""The fast way for ordinary lines. It says "I do not know" (None) rather than anything that the exact checks
would say differently; those take over, line by line."""

import re

import msgspec

from workers.data.chat import ChatMessage
from workers.data.think import CLOSE, OPEN, split_think

_decode = msgspec.json.Decoder().decode
_SPACED_KEY = re.compile(rb'"[ \t\r\n]+:|\\\\":')
_SCALARS = frozenset({str, int, float, bool, type(None)})
_NOT_IGNORED = frozenset({"messages", "prompt", "completion"})
_MESSAGE = frozenset({"role", "content", "reasoning_content", "reasoning"})
Fast = tuple[list[ChatMessage], list[str]]


def fast_row(data: bytes) -> Fast | None:
    """The messages of a line in one of the two plain spellings, and the fields that are not read."""
    if b"\\u0000" in data:
        return None
    try:
        row = _decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None
    if type(row) is not dict:
        return None
    if "messages" in row:
        found, keys = _listed(row), len(row)
        keys += sum(map(len, row["messages"])) if found else 0
    else:
        found, keys = _paired(row), len(row)
    if found is None or not _keys_are_whole(data, keys):
        return None
    ignored = [key for key in row if key not in _NOT_IGNORED]
    if any(type(row[key]) not in _SCALARS for key in ignored):
        return None
    return found, ignored


def _keys_are_whole(data: bytes, keys: int) -> bool:
    """Whether the text has as many keys as the value read from it: a key that stood twice is lost in reading.

    A key ends in `":`. Inside a string every quotation mark has a backslash before it.
    """
    if data.count(b'":') - data.count(b'\\":') != keys:
        return False
    return _SPACED_KEY.search(data) is None


def _listed(row: dict[str, object]) -> list[ChatMessage] | None:
    messages = row["messages"]
    if type(messages) is not list or not messages or "prompt" in row or "completion" in row:
        return None
    found: list[ChatMessage] = []
    due = "user"
    for message in messages:
        if type(message) is not dict or not message.keys() <= _MESSAGE:
            return None
        role, content = message.get("role"), message.get("content")
        if type(content) is not str or not content or content.isspace():
            return None
        if role == "system" and not found:
            found.append({"role": "system", "content": content})
            continue
        if role != due:
            return None
        if role == "user":
            found.append({"role": "user", "content": content})
            due = "assistant"
            continue
        answer = _answer(content, message.get("reasoning_content", message.get("reasoning")), len(message))
        if answer is None:
            return None
        found.append(answer)
        due = "user"
    return found if found[-1]["role"] == "assistant" else None


def _paired(row: dict[str, object]) -> list[ChatMessage] | None:
    question, content = row.get("prompt"), row.get("completion")
    if type(question) is not str or type(content) is not str or not question.strip():
        return None
    answer = _answer(content, None, 2)
    return None if answer is None else [{"role": "user", "content": question}, answer]


def _answer(content: str, given: object, fields: int) -> ChatMessage | None:
    """An assistant turn whose reasoning, if any, is told once and properly."""
    if fields > 3 or (given is not None and type(given) is not str):
        return None
    reasoning = given.strip() if isinstance(given, str) else ""
    if "think>" in content:
        inline = split_think(content)
        if (
            not inline.closed
            or OPEN in inline.answer
            or CLOSE in inline.answer
            or (reasoning and inline.reasoning)
        ):
            return None
        if not inline.reasoning:
            return None
        content, reasoning = inline.answer, inline.reasoning
    if not content or content.isspace():
        return None
    if reasoning:
        return {"role": "assistant", "content": content, "reasoning_content": reasoning}
    return {"role": "assistant", "content": content}
