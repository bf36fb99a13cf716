"""Datasets: what a check is asked for and what it reports."""

from typing import Literal

from pydantic import Field

from workers.contract.base import Message


class SplitSpec(Message):
    """A held-out split that any process can make again from the same file."""

    share: float = Field(default=0.0, ge=0.0, le=0.5)
    """Share of the valid rows that is held out. 0 holds nothing out."""
    seed: int = 0
    """Seed of the split. A row's side depends on the seed and the row's own content alone."""


class ValidateSpec(Message):
    """A `validate` job: read one dataset file and report on every row."""

    format: Literal["jsonl"] = "jsonl"
    max_row_bytes: int = Field(default=8 * 1024 * 1024, gt=0)
    """A longer line is reported and skipped, never held in memory."""
    max_problems: int = Field(default=1000, gt=0)
    """Problems listed one by one; the counts go on beyond it."""
    memory_bytes: int = Field(default=2 * 1024**3, gt=0)
    """Address-space limit of the child process."""
    seconds: int = Field(default=1800, gt=0)
    """Wall-clock limit of the child process."""


class Problem(Message):
    """One thing wrong (or doubtful) in one row."""

    row: int
    """Line number in the file, from 1. 0 speaks of the file as a whole."""
    field: str
    """Path inside the row, such as `messages[1].role`; empty for the row as a whole."""
    code: str
    """Stable snake_case code."""
    message: str
    """One sentence for a person: what is wrong and what to do about it."""


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
    samples: list[dict[str, object]] = []
    """The first few valid rows, normalised to `{"messages": [...]}`."""
    seconds: float
    """Wall-clock time of the check."""
    peak_rss_bytes: int
    """Peak resident memory of the checking process."""
