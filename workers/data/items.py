"""Rows on their way from old versions into a new one."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from workers.contract import DeriveSource, Mapping
from workers.contract.data import storable
from workers.data.batches import check_batch, first_rows
from workers.data.beside import value_at
from workers.data.chat import ChatMessage, Extra, Row, calls_of
from workers.data.readers import Limits, open_source
from workers.data.shapes import recognise

SHOWN = 300
"""Characters of an example."""
LEAD = 60
"""Of those, the ones before the first difference."""
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Item:
    """A row, and where it comes from."""

    origin: int
    """Index of its source."""
    row: int
    """Its number there."""
    source: str
    messages: list[ChatMessage]
    extra: Extra | None = None
    codes: list[str] = field(default_factory=list)
    """Of the warnings about it."""

    def as_row(self) -> Row:
        row = Row(messages=self.messages)
        if self.extra:
            row["extra"] = self.extra
        return row


@dataclass
class SourceCounts:
    """What reading a source came to."""

    rows: int = 0
    refused: int = 0
    mended: list[Item] = field(default_factory=list)
    """The first rows that only other words for roles have made readable."""
    mended_rows: int = 0
    refused_found: int = 0
    """Rows in error that hold what is looked for."""


def read_items(
    path: Path,
    origin: int,
    source: DeriveSource,
    limits: Limits,
    roles: dict[str, Any],
    counts: SourceCounts,
    examples: int = 0,
    looked_for: Callable[[str], bool] | None = None,
) -> Iterator[Item]:
    """The rows of a source that can be trained on. Raises Unreadable where it cannot be read any further.

    Rows in error are only counted, and so are those of them in which something is `looked_for`.
    """
    opened = open_source(path, limits)
    mapping = source.mapping or recognise(first_rows(opened, limits.row_bytes))
    mended = _with_roles(mapping, roles)
    for batch in opened.batches():
        for checked in check_batch(batch, limits.row_bytes, mapping, mended):
            if checked.row is None:
                counts.refused += 1
                if looked_for is not None and looked_for(raw_text(checked.raw)):
                    counts.refused_found += 1
                continue
            codes = [problem.code for problem in checked.warnings]
            item = Item(origin, checked.number, checked.source, checked.row["messages"], checked.extra, codes)
            counts.rows += 1
            if checked.mended:
                counts.mended_rows += 1
                if len(counts.mended) < examples:
                    counts.mended.append(item)
            yield item


def _with_roles(mapping: Mapping | None, roles: dict[str, Any]) -> Mapping | None:
    if mapping is None or not roles:
        return None
    return mapping.model_copy(update={"roles": {**mapping.roles, **roles}})


class Spool:
    """Items put aside on disk, for operations that must see all of them before the first can go on."""

    def __init__(self, folder: Path) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed with the object

    def put(self, items: Iterable[Item]) -> None:
        self._file.writelines(_encode(item) + b"\n" for item in items)

    def __iter__(self) -> Iterator[Item]:
        self._file.seek(0)
        decode = msgspec.json.Decoder(Item).decode
        for line in self._file:
            yield decode(line)
        self._file.close()


def text_of(item: Item, where: str) -> str:
    """The text that a TextField names; empty when the row has none."""
    if where.startswith("extra."):
        return value_at(item.extra, where.removeprefix("extra.")) or ""
    if where == "any":
        return all_text(item)
    messages = item.messages
    if where == "answer":
        return messages[-1]["content"]
    if where == "reasoning":
        return "\n".join(filter(None, (message.get("reasoning_content") for message in messages)))
    role = {"question": "user", "answers": "assistant"}.get(where, where)
    return "\n".join(message["content"] for message in messages if message["role"] == role)


def all_text(item: Item) -> str:
    """Everything in the row, fields beside the conversation included, for looking something up."""
    parts = [text for message in item.messages for text in _texts(message)]
    return "\n".join([*parts, *_leaves(item.extra)])


def _texts(message: ChatMessage) -> Iterator[str]:
    yield message["content"]
    if "reasoning_content" in message:
        yield message["reasoning_content"]
    yield from _leaves(message.get("tool_calls"))


def raw_text(raw: object) -> str:
    """Everything in a row that could not be read as one: its values where it is JSON, else the bare text."""
    if isinstance(raw, bytes):
        try:
            raw = msgspec.json.decode(raw)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return cast(bytes, raw).decode("utf-8", "replace")
    return "\n".join(_leaves(raw))


def _leaves(value: object) -> Iterator[str]:
    """Every text and number, and every name, as they stand there."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield str(name)
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif value is not None:
        yield str(value)


def written(item: Item) -> str:
    """The row as a person reads it."""
    lines: list[str] = []
    for message in item.messages:
        thought = message.get("reasoning_content", "")
        lines.append(f"{message['role']}: " + (f"<think>{thought}</think> " if thought else ""))
        lines[-1] += message["content"]
        lines += [
            f"  calls {call['name']}({_encode(call['arguments']).decode()})" for call in calls_of(message)
        ]
    return "\n".join([*lines, *([_encode(item.extra).decode("utf-8", "replace")] if item.extra else [])])


def cut(text: str, at: int = 0) -> str:
    """A piece of `text` around a position, which a database can keep."""
    start = max(0, at - LEAD) if at > SHOWN - LEAD else 0
    piece = storable(text[start : start + SHOWN])
    return ("…" if start else "") + piece + ("…" if start + SHOWN < len(text) else "")


def first_difference(one: str, two: str) -> int:
    """Position of the first difference."""
    low, high = 0, min(len(one), len(two))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == two[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
