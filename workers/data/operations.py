"""What can be done to rows on their way into a new version: stages that items flow through."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc

from workers.contract import (
    DropContaining,
    DropProblems,
    DropRows,
    Filter,
    Mask,
    OperationResult,
    RowExample,
    TakeSide,
    Trim,
)
from workers.data.chat import ChatMessage, Extra, ToolCall, texts_of
from workers.data.elsewhere import EXACT, RowIndex, row_key, said
from workers.data.figures import CONTROL, RE2_CONTROL, RESIDUE
from workers.data.items import Item, Spool, all_text, cut, first_difference, text_of, written
from workers.data.near import MAX_ROWS, NearDuplicates, signatures
from workers.data.personal import PREFILTER, mask, personal_kinds
from workers.data.split import is_held_out

ROWS_A_TIME = 512


class TooManyRows(Exception):
    """An operation that must hold something of every row cannot; says so for a person."""


Change = Callable[[Item], Item | None]
_RESIDUE, _CONTROL = re.compile(RESIDUE), re.compile(CONTROL)


@dataclass
class Done:
    """What an operation did so far."""

    op: str
    most: int
    """Examples to keep."""
    rows_in: int = 0
    rows_out: int = 0
    changed: int = 0
    found: Counter[str] = field(default_factory=Counter)
    examples: list[RowExample] = field(default_factory=list)

    def keep(self, item: Item) -> Item:
        self.rows_in += 1
        self.rows_out += 1
        return item

    def drop(self, item: Item, at: int = 0) -> None:
        """`at`: the position in the written row that made it go."""
        self.rows_in += 1
        self.show(item, at)

    def show(self, item: Item, at: int = 0) -> None:
        if len(self.examples) < self.most:
            self._example(item, cut(written(item), at))

    def change(self, before: Item, after: Item) -> Item:
        self.changed += 1
        if len(self.examples) < self.most:
            one, two = written(before), written(after)
            at = first_difference(one, two)
            self._example(before, cut(one, at), cut(two, at))
        return self.keep(after)

    def _example(self, item: Item, before: str, after: str = "") -> None:
        example = RowExample(row=item.row, source=item.source, origin=item.origin, before=before, after=after)
        self.examples.append(example)

    def result(self) -> OperationResult:
        return OperationResult(
            op=self.op,
            rows_in=self.rows_in,
            rows_out=self.rows_out,
            changed=self.changed,
            found=dict(self.found),
            examples=self.examples,
        )


def drop_where(
    items: Iterable[Item], done: Done, goes: Callable[[Item], bool], where: Callable[[str], int] | None = None
) -> Iterator[Item]:
    """Without the items that `goes` speaks of; `where` finds the reason in the written row."""
    for item in items:
        if not goes(item):
            yield done.keep(item)
        else:
            done.drop(item, where(written(item)) if where and len(done.examples) < done.most else 0)


def change_where(items: Iterable[Item], done: Done, pattern: str | None, change: Change) -> Iterator[Item]:
    """Items changed where anything in them matches `pattern` (RE2; None: look at all)."""
    for batch in in_batches(items):
        flags = flagged(batch, pattern) if pattern else [True] * len(batch)
        for item, flag in zip(batch, flags, strict=True):
            after = change(item) if flag else None
            yield done.keep(item) if after is None else done.change(item, after)


def in_batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    found = iter(items)
    while batch := list(islice(found, ROWS_A_TIME)):
        yield batch


def flagged(items: Sequence[Item], pattern: str) -> list[bool]:
    """Whether a pass of RE2 over each item sees anything."""
    texts = pa.array(
        [all_text(item).encode("utf-8", "replace").decode() for item in items], pa.large_string()
    )
    return cast(list[bool], pc.match_substring_regex(texts, pattern).to_pylist())


def drop_rows(op: DropRows) -> Callable[[Item], bool]:
    gone = {(row.row, row.source) for row in op.rows}
    return lambda item: item.origin == op.source and (item.row, item.source) in gone


def drop_problems(items: Iterable[Item], op: DropProblems, done: Done) -> Iterator[Item]:
    codes = set(op.codes)
    looked_for = {
        "template_residue": (RESIDUE, lambda text: bool(_RESIDUE.search(text))),
        "control_characters": (RE2_CONTROL, lambda text: bool(_CONTROL.search(text))),
        "personal_data": (PREFILTER, lambda text: bool(personal_kinds(text))),
    }
    wanted = {code: look for code, look in looked_for.items() if code in codes}

    def problems(item: Item, flag: bool) -> set[str]:
        found = codes.intersection(item.codes)
        if "leading_space" in codes and item.messages[-1]["content"][:1].isspace():
            found.add("leading_space")
        if flag:
            texts = [text for message in item.messages for text in texts_of(message)]
            found |= {code for code, (_, holds) in wanted.items() if any(map(holds, texts))}
        return found

    pattern = "|".join(pattern for pattern, _ in wanted.values())
    for batch in in_batches(items):
        flags = flagged(batch, pattern) if pattern else [False] * len(batch)
        for item, flag in zip(batch, flags, strict=True):
            found = problems(item, flag)
            done.found.update(found)
            if found:
                done.drop(item)
            else:
                yield done.keep(item)


def trim(items: Iterable[Item], op: Trim, done: Done) -> Iterator[Item]:
    patterns = [RESIDUE] * ("residue" in op.what) + [RE2_CONTROL] * ("control" in op.what)
    pattern = None if "space" in op.what else "|".join(patterns)

    def clean(text: str) -> str:
        before = text
        if "control" in op.what:
            text, count = _CONTROL.subn("", text)
            done.found.update({"control": count})
        if "residue" in op.what:
            text, count = _RESIDUE.subn("", text)
            done.found.update({"residue": count})
        if "space" in op.what:
            stripped = text.strip()
            done.found["space"] += stripped != text
            text = stripped
        return text if text != before else before

    yield from change_where(items, done, pattern, lambda item: _with_texts(item, clean))
    done.found = +done.found


def mask_personal(items: Iterable[Item], op: Mask, done: Done) -> Iterator[Item]:
    kinds = frozenset(op.kinds)

    def clean(text: str) -> str:
        masked, found = mask(text, kinds)
        done.found.update(found)
        return masked

    yield from change_where(items, done, PREFILTER, lambda item: _with_texts(item, clean, beside=True))


def _with_texts(item: Item, clean: Callable[[str], str], *, beside: bool = False) -> Item | None:
    """The item with all its texts cleaned, or None when that changes nothing.

    `beside`: also in the fields beside the conversation.
    """
    messages = [_clean_message(message, clean) for message in item.messages]
    extra = cast(Extra | None, _clean_value(item.extra, clean)) if beside else item.extra
    if messages == item.messages and extra == item.extra:
        return None
    return replace(item, messages=messages, extra=extra)


def _clean_message(message: ChatMessage, clean: Callable[[str], str]) -> ChatMessage:
    found: ChatMessage = {**message, "content": clean(message["content"])}
    if "reasoning_content" in message:
        found["reasoning_content"] = clean(message["reasoning_content"])
    if "tool_calls" in message:
        found["tool_calls"] = cast(list[ToolCall], _clean_value(message["tool_calls"], clean))
    return found


def _clean_value(value: object, clean: Callable[[str], str]) -> object:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {name: _clean_value(item, clean) for name, item in value.items()}
    return [_clean_value(item, clean) for item in value] if isinstance(value, list) else value


def filtered(op: Filter) -> Callable[[Item], bool]:
    """Whether an item goes."""
    wanted = op.contains.casefold()

    def holds(item: Item) -> bool:
        text = text_of(item, op.field)
        return (
            (not wanted or wanted in text.casefold())
            and (op.equals is None or text.strip() == op.equals.strip())
            and len(text) >= op.shortest
            and (op.longest is None or len(text) <= op.longest)
        )

    return lambda item: holds(item) != op.keep


def containing(op: DropContaining) -> Callable[[Item], bool]:
    holds = text_containing(op)

    def goes(item: Item) -> bool:
        from_file = op.file and (item.source == op.file or item.source.startswith(op.file + ", "))
        return bool(from_file) or holds(all_text(item))

    return goes


def text_containing(op: DropContaining) -> Callable[[str], bool]:
    """The same of a bare text."""
    wanted = folded(op.text)
    return lambda text: bool(wanted) and wanted in folded(text)


def folded(text: str) -> str:
    """Text as it is compared: without case, width and composition of letters, and kinds of white space."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(text.lower().split())


def place_of(text: str) -> Callable[[str], int]:
    """Finds about where `text` stands in a written row, for showing it."""
    wanted = text.casefold().strip()
    return lambda shown: max(0, shown.casefold().find(wanted))


def take_side(op: TakeSide) -> Callable[[Item], bool]:
    return lambda item: is_held_out(item.as_row(), op.split) != (op.side == "heldout")


def drop_repeats(items: Iterable[Item], done: Done) -> Iterator[Item]:
    """The first of exact repeats stays."""
    seen: set[int] = set()
    for item in items:
        key = row_key(item.messages)
        if key in seen:
            done.drop(item)
        else:
            seen.add(key)
            yield done.keep(item)


def drop_near(items: Iterable[Item], done: Done, folder: Path) -> Iterator[Item]:
    """The first of rows that say almost the same stays; all must be seen before it is known which."""
    spool, near = Spool(folder), NearDuplicates()
    for batch in in_batches(items):
        near.add(signatures([said(item.messages) for item in batch]))
        spool.put(batch)
    if not near.complete:
        raise TooManyRows(f"Rows that are almost the same are looked for among at most {MAX_ROWS:,} rows.")
    roots = near.roots()
    for index, item in enumerate(spool):
        if roots[index] != index:
            done.drop(item)
        else:
            yield done.keep(item)


def drop_overlap(items: Iterable[Item], done: Done, index: RowIndex, *, near: bool) -> Iterator[Item]:
    for batch in in_batches(items):
        how, _ = index.look_up([item.messages for item in batch])
        for item, kind in zip(batch, how.tolist(), strict=True):
            if kind == EXACT or (near and kind):
                done.drop(item)
            else:
                yield done.keep(item)
