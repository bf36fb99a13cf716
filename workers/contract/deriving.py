"""New dataset versions from old ones: what a `derive` job is asked for, what it did, and what differs."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from workers.contract.base import Message, Sha256
from workers.contract.data import OtherRows, SplitSpec, ValidationReport
from workers.contract.reading import Mapping

TextField = Annotated[
    str,
    StringConstraints(pattern=r"^(question|answers?|reasoning|system|any|extra\..+)$", max_length=200),
]
"""`question` (all user messages), `answer` (the last), `answers` (all), `reasoning`, `system`, `any` (all of
these), or `extra.` and the path of a field beside the conversation, such as `extra.metadata.customer`."""


class RowAt(Message):
    """A row by its place in a source."""

    row: int = Field(ge=1)
    source: str = Field(default="", max_length=400)
    """The file inside an archive, or the sheet, as `Problem.source` has it."""


class DropRows(Message):
    op: Literal["drop_rows"] = "drop_rows"
    rows: list[RowAt] = Field(min_length=1, max_length=100_000)
    source: int = Field(default=0, ge=0)
    """Which of the job's sources they are numbered in."""


class DropDuplicates(Message):
    """The first of rows that are the same stays."""

    op: Literal["drop_duplicates"] = "drop_duplicates"
    near: bool = False
    """Also rows that say almost the same."""


class DropProblems(Message):
    """Rows with a warning of one of these codes go; rows with errors never get into a version."""

    op: Literal["drop_problems"] = "drop_problems"
    codes: list[Annotated[str, Field(max_length=60)]] = Field(min_length=1, max_length=50)
    """Of the report's warnings, and `leading_space`, `template_residue`, `control_characters`,
    `personal_data`."""


class Trim(Message):
    """Take from every message, never from the inside of a word."""

    op: Literal["trim"] = "trim"
    what: list[Literal["space", "residue", "control"]] = Field(default=["space"], min_length=1)
    """White space around texts; control tokens of chat templates; invisible control characters."""


class Mask(Message):
    """Personal data and secrets become `[EMAIL]`, `[PHONE]`, ..., also in fields beside the conversation."""

    op: Literal["mask"] = "mask"
    kinds: list[Annotated[str, Field(max_length=40)]] = Field(min_length=1, max_length=40)
    """Keys of `Doctor.personal`."""


class Filter(Message):
    """Keep or drop the rows for which everything that is said here holds."""

    op: Literal["filter"] = "filter"
    field: TextField = "any"
    contains: str = Field(default="", max_length=1000)
    """Case does not matter."""
    equals: str | None = Field(default=None, max_length=1000)
    shortest: int = Field(default=0, ge=0)
    """In characters."""
    longest: int | None = Field(default=None, ge=0)
    keep: bool = True
    """False: the rows go."""

    @model_validator(mode="after")
    def says_something(self) -> Self:
        if not self.contains and self.equals is None and not self.shortest and self.longest is None:
            raise ValueError("Say what the field should contain, equal, or how long it should be.")
        return self


class Append(Message):
    """All rows of another source follow. Operations before this one do not touch them."""

    op: Literal["append"] = "append"
    source: int = Field(ge=1)


class MapRole(Message):
    """What a source calls a role. Give the source as it was uploaded: rows in error are in no version."""

    op: Literal["map_role"] = "map_role"
    role: str = Field(min_length=1, max_length=80)
    """As it stands there; case does not matter."""
    to: Literal["system", "user", "assistant"]


class DropContaining(Message):
    """Erasure: rows that hold a text anywhere (fields beside the conversation included), or come from a file.

    The result's `found` has `in_error`, where rows that are in error, and so in no version, hold the text.
    The value to erase stands in this message: do not keep it longer than the job runs.
    """

    op: Literal["drop_containing"] = "drop_containing"
    text: str = Field(default="", max_length=1000)
    """Case, and how much white space stands between words, do not matter."""
    file: str = Field(default="", max_length=400)
    """The file inside an archive, or the sheet."""

    @model_validator(mode="after")
    def says_something(self) -> Self:
        if not self.text.strip() and not self.file:
            raise ValueError("Give a text or a file: nothing would be found.")
        return self


class DropOverlap(Message):
    """Rows that are in another source as well go."""

    op: Literal["drop_overlap"] = "drop_overlap"
    source: int = Field(ge=1)
    near: bool = True
    """Also rows that say almost the same, or ask the same question."""


class TakeSide(Message):
    """One side of a split becomes a version of its own."""

    op: Literal["take_side"] = "take_side"
    split: SplitSpec
    side: Literal["train", "heldout"]


Operation = Annotated[
    DropRows
    | DropDuplicates
    | DropProblems
    | Trim
    | Mask
    | Filter
    | Append
    | MapRole
    | DropContaining
    | DropOverlap
    | TakeSide,
    Field(discriminator="op"),
]


class DeriveSource(Message):
    """A version's rows, normalised, or its file as uploaded; in order the job's inputs `source-0`, …"""

    name: str = Field(max_length=200)
    """What people call it; repeated in the result."""
    sha256: Sha256
    mapping: Mapping | None = None
    """How to read it, where it is not normalised; None: by looking."""


class DeriveSpec(Message):
    """A `derive` job: rows of the first source, changed by one operation after the other.

    It writes `rows.parquet` like a check, with two columns more: `origin` (index of the source) and
    `origin_row` (the row's number there). Rows are numbered anew, from 1.
    """

    sources: list[DeriveSource] = Field(min_length=1, max_length=20)
    operations: list[Operation] = Field(min_length=1, max_length=50)
    dry_run: bool = False
    """Count and show examples, write nothing: what people see before they agree. Also finds rows."""
    examples: int = Field(default=10, ge=0, le=200)
    """Shown for each operation; of what is masked or erased only in a dry run."""
    split: SplitSpec | None = None
    """To report on, as in ValidateSpec."""
    others: list[OtherRows] = Field(default=[], max_length=20)
    """To report on, as in ValidateSpec."""
    near_duplicates: bool = True
    """Whether the report on the new rows looks for them."""
    memory_bytes: int = Field(default=2 * 1024**3, gt=0)
    seconds: int = Field(default=3600, gt=0)
    max_row_bytes: int = Field(default=8 * 1024 * 1024, gt=0)
    unpacked_bytes: int = Field(default=64 * 1024**3, gt=0)
    output_bytes: int = Field(default=64 * 1024**3, gt=0)

    @model_validator(mode="after")
    def names_its_sources(self) -> Self:
        for operation in self.operations:
            source = operation.source if isinstance(operation, DropRows | Append | DropOverlap) else 0
            if source >= len(self.sources):
                raise ValueError(f"There is no source {source}.")
        return self


class RowExample(Message):
    """A row that an operation touched."""

    row: int
    """Its number in its source."""
    source: str = ""
    """The file inside an archive, or the sheet."""
    origin: int = 0
    """Index of the source."""
    before: str
    """The place that matters, cut to a few hundred characters."""
    after: str = ""
    """The same after the change; empty when the row goes."""


class OperationResult(Message):
    """What one operation did, in the order of the spec."""

    op: str
    rows_in: int
    rows_out: int
    changed: int = 0
    """Rows that stay and are not as they were."""
    found: dict[str, int] = {}
    """Places by kind, such as `email` for a mask."""
    examples: list[RowExample] = []


class DeriveResult(Message):
    """What a `derive` job ends with."""

    operations: list[OperationResult]
    rows: list[int]
    """Rows that could be read in each source."""
    refused: list[int]
    """Rows in error in each source; they are in no version."""
    report: ValidationReport | None
    """On the new rows; None for a dry run."""
    seconds: float
    peak_rss_bytes: int


class CompareSpec(Message):
    """A `compare` job: what differs between two versions. Inputs `before`, `after`: their normalised rows."""

    origin: int | None = Field(default=None, ge=0)
    """Where `after` was derived from `before`: its index among the sources."""
    examples: int = Field(default=50, ge=0, le=500)
    """Shown of each kind of difference."""
    memory_bytes: int = Field(default=2 * 1024**3, gt=0)
    seconds: int = Field(default=1800, gt=0)


class RowChange(Message):
    """A row that differs. One of the numbers is 0 for a row that only one version has."""

    before_row: int = 0
    after_row: int = 0
    before: str = ""
    """The conversation as text, cut around the first difference."""
    after: str = ""


class CompareResult(Message):
    """The difference of two versions. Rows that moved are the same."""

    same: int
    added: int
    removed: int
    changed: int
    """Rows that are in both with another text: by where a derived row came from, else by the same question,
    else by almost the same words."""
    added_rows: list[RowChange] = []
    removed_rows: list[RowChange] = []
    changed_rows: list[RowChange] = []
    seconds: float
