"""What a text file is, by its first bytes: encoding, JSON or table, delimiter."""

import codecs
import csv
import io
import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from charset_normalizer import from_bytes

HEAD = 256 * 1024
DELIMITERS = ",;\t|"
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
USUAL = "cp1252"
LEGACY = (
    USUAL,
    "cp1250",
    "cp1251",
    "cp1253",
    "cp1254",
    "iso8859_15",
    "koi8_r",
    "shift_jis",
    "gb18030",
    "big5",
)
_OBJECT = re.compile(r"^\s*[{\[]", re.MULTILINE)
_LIST_INSIDE = re.compile(
    r'"(?:data|rows|examples?|items|records|train|samples|dataset|instances|entries)"\s*:\s*(\[)\s*[{\]]'
)
"""Names under which other tools keep their rows."""
_ROW_FIELD = re.compile(r'"(?:messages|conversations?|prompt|question|instruction|input)"\s*:')
FEW = 4
"""Lines from which a majority says something."""
ENOUGH_LINES = 2
"""One line of JSON that is not UTF-8 is a damaged line; several are another encoding."""


@dataclass(frozen=True, slots=True)
class Text:
    """What a text file looks like."""

    kind: Literal["jsonl", "json", "objects", "table", "prose"]
    """JSON Lines; one JSON list; JSON objects over several lines each; a table; none of these."""
    encoding: str
    """A Python codec, or `utf-8`."""
    delimiter: str = ","
    skip: int = 0
    """Bytes in UTF-8 before the list, where it stands inside of an object."""
    line_ends: Literal["\n", "\r"] = "\n"


def sniff(head: bytes) -> Text | None:
    """What a text that begins with `head` is; None when it is not text."""
    encoding = _unicode(head)
    if encoding is None and _looks_binary(head):
        return None
    text = _text(head, encoding or "utf-8")
    first = text.lstrip("\ufeff \t\r\n")[:1]
    if first in "{[" and first:
        return _json(text, encoding or _encoding_of_lines(head), len(codecs.BOM_UTF8))
    encoding = encoding or _encoding(head)
    text = _text(head, encoding)
    if delimiter := _delimiter(text):
        return Text("table", encoding, delimiter)
    return Text("prose" if text.strip() and not _OBJECT.search(text) else "jsonl", encoding)


def _unicode(head: bytes) -> str | None:
    """An encoding that says itself what it is: by its mark, or by the zeros between its letters."""
    for mark, name in MARKS:
        if head.startswith(mark):
            return name
    sample = head[:4096]
    if len(sample) >= 8 and sample.count(0) > len(sample) // 4:
        odd, even = sample[1::2].count(0), sample[0::2].count(0)
        if odd > len(sample) * 3 // 8 and not even:
            return "utf-16-le"
        if even > len(sample) * 3 // 8 and not odd:
            return "utf-16-be"
    return None


def _looks_binary(head: bytes) -> bool:
    control = len(head[:4096].translate(None, bytes(range(32, 256)) + b"\t\n\r\x0c\x1b"))
    return control > max(8, len(head[:4096]) // 20)


def _text(head: bytes, encoding: str) -> str:
    return codecs.getincrementaldecoder(encoding)("replace").decode(head)


def _json(text: str, encoding: str, mark: int) -> Text:
    """Lines of JSON, one list, a list inside of an object, or objects over several lines.

    `mark`: bytes of the byte order mark that UTF-8 may begin with.
    """
    stripped = text.lstrip("\ufeff \t\r\n")
    line, end, rest = stripped.partition("\n")
    if stripped.startswith("["):
        # `[` alone begins a list; a line of its own that is whole does not.
        whole = end and line.rstrip().endswith("]") and rest.lstrip()[:1] in ("[", "{")
        return Text("jsonl" if whole else "json", encoding)
    alone = not rest.strip()
    several = not line.rstrip().endswith("}") and rest.strip() and not rest.lstrip("\r\n").startswith("{")
    found = _LIST_INSIDE.search(stripped) if alone or several else None
    if found is not None and not _ROW_FIELD.search(stripped, 0, found.start()):
        skip = len(text[: len(text) - len(stripped) + found.start(1)].encode("utf-8", "replace"))
        return Text("json", encoding, skip=skip + (mark if encoding == "utf-8-sig" else 0))
    if not end and "\r" in stripped:
        return Text("jsonl", encoding, line_ends="\r")
    return Text("objects" if several else "jsonl", encoding)


def _encoding_of_lines(head: bytes) -> str:
    """JSON Lines are UTF-8, unless several lines are not and none holds a character of UTF-8 beyond ASCII."""
    lines = head.split(b"\n")[:-1] or [head]
    bad = sum(not _is_utf8(line) for line in lines)
    good = any(not line.isascii() and _is_utf8(line) for line in lines)
    return "utf-8" if bad < ENOUGH_LINES or good else _guess(head)


def _encoding(head: bytes) -> str:
    """UTF-8, also where single lines are damaged: those become errors with a place."""
    mixed = any(not line.isascii() and _is_utf8(line) for line in head.split(b"\n")[:-1])
    return "utf-8" if mixed or _is_utf8(head) else _guess(head)


def _is_utf8(data: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return True


def _guess(head: bytes) -> str:
    head = head[:65536]
    best = from_bytes(head, cp_isolation=list(LEGACY)).best()
    if best is None or _text(head, best.encoding) == _text(head, USUAL):
        return USUAL  # others say the same of these bytes; of later ones it is the likeliest to
    return best.encoding


def _delimiter(text: str) -> str:
    """What cuts the first lines into equally many columns, more than one; empty when nothing does."""
    sample = text[:65536]
    if (cut := sample.rfind("\n")) > 0 and len(sample) < len(text):
        sample = sample[:cut]
    if re.match(r"\s*[{\[]", sample):
        return ""
    best, best_score = "", 0.0
    for delimiter in DELIMITERS:
        score = _score(sample, delimiter)
        if score > best_score:
            best, best_score = delimiter, score
    return best


def _score(sample: str, delimiter: str) -> float:
    try:
        counts = [
            len(row) for row in csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter) if row
        ][:200]
    except csv.Error:
        return 0.0
    if not counts:
        return 0.0
    columns, lines = Counter(counts).most_common(1)[0]
    if columns < 2:
        return 0.0
    same = lines / len(counts)
    return same + min(columns, 20) / 1000 if same >= (0.6 if len(counts) > FEW else 0.5) else 0.0
