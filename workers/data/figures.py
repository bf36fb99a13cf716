"""Figures of checked rows: counted batch by batch, in any process, and added up in the order of the file."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import islice
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from workers.contract import Mapping, Problem, ValidateSpec
from workers.data.batches import check_batch
from workers.data.beside import paths
from workers.data.chat import ChatMessage, texts_of
from workers.data.checked import CheckedLine
from workers.data.elsewhere import RowIndex, said
from workers.data.near import Signatures, signatures
from workers.data.normalised import record_batch
from workers.data.overlap import Shared, Sides
from workers.data.personal import PREFILTER, personal_kinds
from workers.data.readers import Batch

BINS = 33
"""Histogram bins: powers of two of characters."""
SAMPLES, SAMPLE_CHARACTERS = 5, 20_000
"""A longer row is not shown as a sample."""
PLACES = 20
LAST_LATIN = "\u024f"
SHORT_ANSWER = 80
MAX_FIELDS = 100
"""Paths that are counted."""
DISTINCT_ANSWERS = 5000
"""Beyond so many different short answers they are texts, not labels."""
RESIDUE = (
    r"<\|(?:im_start|im_end|begin_of_text|end_of_text|eot_id|endoftext|start_header_id|end_header_id"
    r"|system|user|assistant)\|>|\[/?INST\]|<</?SYS>>|<｜[^｜]{1,30}｜>|<(?:start|end)_of_turn>"
    r"|### (?:Instruction|Response|Human|Assistant):"
)
CONTROL = r"[\x01-\x08\x0b\x0e-\x1f\x7f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]"
_RESIDUE, _CONTROL = re.compile(RESIDUE), re.compile(CONTROL)
RE2_CONTROL = re.sub(r"\\u([0-9a-f]{4})", r"\\x{\1}", CONTROL)
_WATCHED = f"{PREFILTER}|{RE2_CONTROL}|{RESIDUE}"
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


@dataclass
class Found:
    """What a batch came to; batches are added up by `workers.data.validation`."""

    rows: int = 0
    valid: int = 0
    turns: int = 0
    characters: int = 0
    with_reasoning: int = 0
    empty_reasoning: int = 0
    leading_space: int = 0
    control: int = 0
    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    error_counts: Counter[str] = field(default_factory=Counter)
    warning_counts: Counter[str] = field(default_factory=Counter)
    ignored: dict[str, int] = field(default_factory=dict)
    """Fields that are not read, and the first row that has them."""
    fields: Counter[str] = field(default_factory=Counter)
    """Rows by the path of a field beside the conversation."""
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, BINS), dtype=np.int64))
    """Rows by length of question, reasoning and last answer."""
    answers: Counter[str] = field(default_factory=Counter)
    long_answers: int = 0
    json_answers: int = 0
    other_answers: list[str] = field(default_factory=list)
    """Places of the first answers that are not JSON."""
    scripts: Counter[str] = field(default_factory=Counter)
    personal: Counter[str] = field(default_factory=Counter)
    """Rows by kind."""
    personal_places: dict[str, list[str]] = field(default_factory=dict)
    residue: int = 0
    residue_places: list[str] = field(default_factory=list)
    samples: list[dict[str, object]] = field(default_factory=list)
    numbers: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    keys: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """For each good row a number that equal conversations share."""
    signatures: Signatures | None = None
    shared: list[Shared] = field(default_factory=list)
    """For every file to compare with."""
    sides: Sides = field(default_factory=Sides)
    table: pa.RecordBatch | None = None
    """The good rows under the normalised layout."""


def find(
    batch: Batch,
    spec: ValidateSpec,
    mapping: Mapping | None,
    *,
    samples: int,
    table: bool,
    others: Sequence[RowIndex] = (),
) -> Found:
    """Check a batch and take its figures."""
    found = Found()
    good: list[CheckedLine] = []
    for checked in check_batch(batch, spec.max_row_bytes, mapping):
        found.rows += 1
        if checked.errors or checked.warnings:
            _keep_problems(checked, found, spec.max_problems)
        if checked.row is not None:
            good.append(checked)
    if good:
        _figures(good, found, spec, samples=samples, table=table)
        _elsewhere(good, found, spec, others)
    return found


def _key(row: list[ChatMessage]) -> int:
    """Equal only in processes with the same PYTHONHASHSEED. Two different rows of a million share one with a
    chance of three in a hundred million."""
    try:
        return hash(tuple([tuple(message.values()) for message in row]))
    except TypeError:  # calls of tools are lists
        return hash(_encode(row))


def _elsewhere(good: list[CheckedLine], found: Found, spec: ValidateSpec, others: Sequence[RowIndex]) -> None:
    """Where else the rows stand."""
    if spec.split is not None:
        for checked in good:
            found.sides.add(checked, spec.split)
    rows = [checked.row["messages"] for checked in good if checked.row is not None]
    for index in others:
        how, where = index.look_up(rows, found.signatures)
        at = np.flatnonzero(how)
        found.shared.append(Shared(found.numbers[at], how[at], where[at]))


def _keep_problems(checked: CheckedLine, found: Found, most: int) -> None:
    for problems, kept, counts in (
        (checked.errors, found.errors, found.error_counts),
        (checked.warnings, found.warnings, found.warning_counts),
    ):
        for problem in problems:
            counts[problem.code] += 1
            if counts[problem.code] <= most:
                kept.append(problem)


def _figures(good: list[CheckedLine], found: Found, spec: ValidateSpec, *, samples: int, table: bool) -> None:
    rows = [checked.row["messages"] for checked in good if checked.row is not None]
    numbers = [checked.number for checked in good]
    found.valid = len(rows)
    found.numbers = np.array(numbers, dtype=np.int64)
    found.keys = np.array([_key(row) for row in rows], dtype=np.int64)
    for checked in good:
        for name in checked.ignored:
            found.ignored.setdefault(name, checked.number)
        if checked.extra:
            found.fields.update(islice(paths(checked.extra), MAX_FIELDS))
    extras = [checked.extra for checked in good]
    batch = record_batch(numbers, [checked.source for checked in good], rows, extras)
    _lengths(batch, rows, found, samples)
    _watched_texts(batch, numbers, rows, found)
    if spec.near_duplicates:
        found.signatures = signatures([said(row) for row in rows])
    if table:
        found.table = batch


def _lengths(batch: pa.RecordBatch, rows: Sequence[list[ChatMessage]], found: Found, samples: int) -> None:
    """What can be said of all rows at once, from the columns."""
    column: Any = batch.column("messages")
    begin, end = column.offsets.to_numpy()[:-1], column.offsets.to_numpy()[1:]
    role, content, thought = (column.values.field(index) for index in range(3))
    answers = pc.equal(role, "assistant").to_numpy(zero_copy_only=False)
    length = pc.utf8_length(content).to_numpy()
    thinking = pc.utf8_length(thought).fill_null(0).to_numpy()
    plain = pc.binary_length(content).to_numpy() == length
    last = content.take(pa.array(end - 1))
    sizes = np.add.reduceat(length + thinking, begin)
    reasoning = thinking[end - 1]
    found.turns += int(answers.sum())
    found.characters += int(sizes.sum())
    found.with_reasoning += int((reasoning > 0).sum())
    asked = np.add.reduceat(np.where(answers, 0, length), begin)
    for kind, lengths in enumerate((asked, reasoning[reasoning > 0], length[end - 1])):
        bins = np.frexp(lengths.astype(np.float64))[1]  # the exponent: bits of the number
        found.lengths[kind] += np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)
    spaced = pc.utf8_is_space(pc.utf8_slice_codeunits(last, 0, 1))
    found.leading_space += pc.sum(spaced).as_py() or 0
    ascii_only = plain[begin] & plain[end - 1]  # a byte a character
    found.scripts["Latin"] += int(ascii_only.sum())
    found.scripts.update(_script(rows[index]) for index in np.flatnonzero(~ascii_only).tolist())
    found.scripts = +found.scripts
    small = np.flatnonzero(sizes <= SAMPLE_CHARACTERS)[:samples]
    found.samples = [{"messages": list(rows[index])} for index in small.tolist()]
    _answers(rows, length[end - 1], found)
    _formats(last, rows, found)


def _formats(last: pa.LargeStringArray, rows: Sequence[list[ChatMessage]], found: Found) -> None:
    """How many answers are JSON, and where the first are that are not."""
    likely = pc.match_substring_regex(last, r"^\s*[\[{]").to_numpy(zero_copy_only=False)
    whole = [index for index in np.flatnonzero(likely).tolist() if _is_json(rows[index][-1]["content"])]
    found.json_answers += len(whole)
    other = np.ones(len(rows), dtype=bool)
    other[whole] = False
    other[pc.equal(last, "").to_numpy(zero_copy_only=False)] = False  # a call alone
    for index in np.flatnonzero(other)[:PLACES].tolist():
        found.other_answers.append(f"row {found.numbers[index]}, messages[{len(rows[index]) - 1}]")


def _is_json(text: str) -> bool:
    try:
        _decode(text)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return False
    return True


def _answers(rows: Sequence[list[ChatMessage]], lengths: NDArray[np.int64], found: Found) -> None:
    """Short answers are counted: they may be labels."""
    short = np.flatnonzero(lengths <= SHORT_ANSWER).tolist()
    found.long_answers += len(rows) - len(short)
    for index in short:
        if len(found.answers) <= DISTINCT_ANSWERS:
            found.answers[_answer(rows[index][-1])] += 1
        else:
            found.long_answers += 1


def _answer(message: ChatMessage) -> str:
    """The text, or the functions that are called without a word."""
    calls = message.get("tool_calls", ())
    return message["content"] or "call of " + ", ".join(call["name"] for call in calls)


def _script(row: list[ChatMessage]) -> str:
    """The writing system of most letters at the start of the question and the answer."""
    start = row[0]["content"][:200] + row[-1]["content"][:200]
    if max(start) <= LAST_LATIN:
        return "Latin" if any(map(str.isalpha, start)) else "other"
    letters = [letter for letter in start if letter.isalpha()]
    if not letters:
        return "other"
    foreign = [letter for letter in letters if letter > LAST_LATIN]
    if len(foreign) * 2 < len(letters):
        return "Latin"
    names = Counter(unicodedata.name(letter, "other").split(" ")[0].capitalize() for letter in foreign)
    return names.most_common(1)[0][0]


def _watched_texts(
    batch: pa.RecordBatch, numbers: Sequence[int], rows: Sequence[list[ChatMessage]], found: Found
) -> None:
    """Look closely at the few texts in which one pass of RE2 over all of them saw anything to look at."""
    messages: Any = batch.column(2).flatten()
    texts = [messages.field(1), messages.field(2), messages.field(3)]
    flagged = [
        pc.match_substring_regex(text, _WATCHED).fill_null(False)
        for text in texts
        if text.null_count < len(text)  # each look builds its machine anew
    ]
    at = np.flatnonzero(reduce(pc.or_, flagged).to_numpy(zero_copy_only=False))
    if not len(at):
        return
    ends = np.cumsum([len(row) for row in rows])
    owners = np.searchsorted(ends, at, side="right")
    seen: dict[int, set[str]] = {}
    for index, owner in zip(at.tolist(), owners.tolist(), strict=True):
        position = index - (int(ends[owner - 1]) if owner else 0)
        message = rows[owner][position]
        text = "\n".join(texts_of(message))
        place = f"row {numbers[owner]}, messages[{position}]"
        _look(text, place, seen.setdefault(owner, set()), found)


def _look(text: str, place: str, seen: set[str], found: Found) -> None:
    """`seen`: what was found in this row already; rows are counted, not places."""
    for kind in personal_kinds(text):
        if kind not in seen:
            seen.add(kind)
            found.personal[kind] += 1
            places = found.personal_places.setdefault(kind, [])
            if len(places) < PLACES:
                places.append(place)
    if "residue" not in seen and _RESIDUE.search(text):
        seen.add("residue")
        found.residue += 1
        if len(found.residue_places) < PLACES:
            found.residue_places.append(place)
    if "control" not in seen and _CONTROL.search(text):
        seen.add("control")
        found.control += 1
