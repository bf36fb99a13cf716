"""Datasets: what a check is asked for and what it reports.

New versions from old ones are asked for in `workers.contract.deriving`, the view through a model's eyes in
`workers.contract.preview`.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from workers.contract.base import Message, Sha256
from workers.contract.reading import Mapping, Reading

FileFormat = Literal["auto", "jsonl"]
MAX_ROWS = 20_000_000
"""Rows of one file that are read: a check holds some forty bytes of each."""


class SplitSpec(Message):
    """A held-out split that any process can make again from the same file."""

    share: float = Field(default=0.0, ge=0.0, le=0.5)
    """Share of the valid rows that is held out. 0 holds nothing out."""
    seed: int = 0
    """Seed of the split. A row's side depends on the seed and the row's own content alone."""
    group: str = Field(default="", max_length=200)
    """A field beside the conversation, such as `customer` or `metadata.customer`: all rows with the same
    value are on the same side. Rows without a value there count by their own content. Empty: every row for
    itself."""


class OtherRows(Message):
    """A file to compare with, such as an evaluation suite; in order the job's inputs `other-0`, …"""

    name: str = Field(max_length=200)
    """What people call it; repeated in the report."""
    sha256: Sha256
    mapping: Mapping | None = None
    """How to read it, where it is not normalised."""


class ValidateSpec(Message):
    """A `validate` job: read one dataset file, report on every row, and write the good ones normalised."""

    format: FileFormat = "auto"
    """`auto` looks at the bytes, never at the file's name. `jsonl` reads JSON Lines whatever that looks
    like"""
    mapping: Mapping | None = None
    """How to read the rows; None: recognised by looking."""
    near_duplicates: bool = True
    """Whether rows are compared by their words as well as exactly."""
    max_row_bytes: int = Field(default=8 * 1024 * 1024, gt=0)
    """A longer line is reported and skipped, never held in memory."""
    max_problems: int = Field(default=1000, gt=0)
    """Problems listed one by one; the counts go on beyond it."""
    memory_bytes: int = Field(default=2 * 1024**3, gt=0)
    """Address-space limit of the child process."""
    seconds: int = Field(default=1800, gt=0)
    """Wall-clock limit of the child process."""
    unpacked_bytes: int = Field(default=64 * 1024**3, gt=0)
    """The most bytes that an archive or a compressed file may hold."""
    output_bytes: int = Field(default=64 * 1024**3, gt=0)
    """The largest file the child process may write."""
    split: SplitSpec | None = None
    """The held-out split to report on; it is stored with the version."""
    others: list[OtherRows] = Field(default=[], max_length=20)
    """Held-out rows and suites that no row should be in as well."""


def storable(text: str) -> str:
    """`text` without NUL and halves of characters, which no database takes: names in a file may hold them."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


Storable = Annotated[str, AfterValidator(storable)]


class Problem(Message):
    """One thing wrong (or doubtful) in one row."""

    row: int
    """Line number in the file, from 1. 0 speaks of the file as a whole."""
    field: Storable
    """Path inside the row, such as `messages[1].role`; empty for the row as a whole."""
    code: str
    """Stable snake_case code."""
    message: Storable
    """One sentence for a person: what is wrong and what to do about it."""
    value: Storable = ""
    """What stands there, cut to a few words; empty where it would not help. Never logged."""
    source: Storable = ""
    """The file inside an archive, or the sheet of a workbook; empty otherwise."""


class Counted(Message):
    """How many rows something was found in, and where first."""

    rows: int
    places: list[str] = []
    """The first few places, such as `row 3, messages[1]`; never the text itself."""


class Overlap(Message):
    """Rows that are also in another file, or on the other side of the split. A row is counted once, by the
    first of the three that holds."""

    name: str
    """Of the `OtherRows`; empty: the held-out side of this very file."""
    sha256: Sha256 | None = None
    exact: int = 0
    """Rows with the same conversation."""
    same_question: int = 0
    """Rows with the same question and another answer."""
    near: int = 0
    """Rows that say almost the same."""
    rows: list[int] = []
    """The first 1,000 of them, by number."""
    places: list[str] = []
    """The first few as sentences, such as `row 3 is row 17 there`."""

    @property
    def total(self) -> int:
        return self.exact + self.same_question + self.near


class SplitCounts(Message):
    """What a split does to the valid rows."""

    spec: SplitSpec
    train: int
    heldout: int
    groups: int = 0
    """Different values of the group; 0 without one."""
    heldout_groups: int = 0
    without_group: int = 0
    """Rows that have no value there."""


class Doctor(Message):
    """Figures and doubts about the good rows as a whole."""

    verdict: Literal["ready", "ready_with_warnings", "not_ready"]
    reasons: list[str] = []
    """Why, in sentences for a person, the weightiest first."""
    next_step: str = ""
    exact_duplicates: int = 0
    """Rows that repeat an earlier row."""
    near_duplicates: int = 0
    """Rows that say almost the same as an earlier row, exact repeats not counted."""
    near_groups: list[list[int]] = []
    """Row numbers that belong together, the largest groups first; at most 50 groups of at most 20."""
    near_checked: bool = False
    """False when the comparison was not asked for, or there were too many rows for it."""
    personal: dict[str, Counted] = {}
    """Personal data and secrets by kind, such as `email`, `iban`, `private_key`."""
    answer_lengths: list[tuple[int, int]] = []
    """Histogram: upper end in characters (powers of two) and rows; the same for the next two."""
    question_lengths: list[tuple[int, int]] = []
    reasoning_lengths: list[tuple[int, int]] = []
    empty_reasoning: int = 0
    """Last answers with think tags and nothing between them."""
    unclosed_reasoning: int = 0
    answers: list[tuple[str, int]] = []
    """The most frequent short answers and their rows; empty where answers do not repeat."""
    json_answers: int = 0
    """Rows whose last answer is a JSON object or list."""
    off_format: Counted | None = None
    """Where nearly all answers are JSON: the rows whose answer is not."""
    alike_answers: list[list[str]] = []
    """Frequent short answers that differ only in case, white space or punctuation at their ends."""
    constant_answer: bool = False
    """Every row has the same answer."""
    leading_space: int = 0
    """Rows whose last answer begins with white space."""
    template_residue: Counted | None = None
    """Rows that carry control tokens of a chat template as text."""
    scripts: dict[str, int] = {}
    """Rows by the writing system of most of their letters: `Latin`, `Cyrillic`, …"""
    control_characters: int = 0
    """Rows with invisible control or direction characters."""
    overlap: list[Overlap] = []
    """Where rows of this file stand elsewhere too; entries without any such row included."""
    split: SplitCounts | None = None
    fields: dict[Storable, int] = {}
    """Fields beside the conversation that are kept, by path such as `metadata.customer`, and the rows that
    have them; at most 100. One of them may be the group of a split or the field of a filter."""


class ValidationReport(Message):
    """What is in a dataset file."""

    rows: int
    """Lines that are not blank."""
    valid: int
    """Rows that can be trained on."""
    errors: list[Problem]
    """Reasons why rows cannot be used; at most `max_problems`."""
    warnings: list[Problem]
    """Doubts about rows that can be used; at most `max_problems`."""
    error_count: int
    """All errors, listed or not."""
    warning_count: int
    """All warnings, listed or not."""
    error_counts: dict[str, int] = {}
    """Errors per code."""
    with_reasoning: int = 0
    """Valid rows whose last answer carries a think block or a reasoning field."""
    turns: int = 0
    """Assistant turns in the valid rows."""
    characters: int = 0
    """Characters of text in the valid rows."""
    reading: Reading | None = None
    """How the file was read."""
    doctor: Doctor | None = None
    warning_counts: dict[str, int] = {}
    """Warnings per code."""
    sha256: Sha256 | None = None
    """Digest of the file, where the check was asked to take it."""
    samples: list[dict[str, object]] = []
    """The first few valid rows, normalised to `{"messages": [...]}`."""
    seconds: float
    """Wall-clock time of the check."""
    peak_rss_bytes: int
    """Peak resident memory of the checking process."""
