"""A stream that was held back, read as the whole answer it amounts to."""

from stillhouse.gateway.fastjson import decode
from stillhouse.gateway.requests import Body
from stillhouse.gateway.routing import Target
from stillhouse.gateway.think import ThinkSplitter


def choices_of_stream(raw: bytes, target: Target) -> list[Body]:
    """The choices of a stream of constrained output: their texts without reasoning, and whether they call
    tools."""
    texts: dict[int, str] = {}
    calls: set[int] = set()
    for line in raw.split(b"\n"):
        data = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or not data.startswith(b"{"):
            continue
        for choice in decode(data).get("choices") or []:
            index, delta = choice.get("index", 0), choice.get("delta") or {}
            texts[index] = texts.get(index, "") + (delta.get("content") or "")
            if delta.get("tool_calls"):
                calls.add(index)
    return [
        {"message": {"content": _answer(text, target), "tool_calls": index in calls}}
        for index, text in sorted(texts.items())
    ]


def _answer(text: str, target: Target) -> str:
    splitter = ThinkSplitter(target.think, prompt_opens=False)
    return splitter.feed(text)[1] + splitter.finish()[1]
