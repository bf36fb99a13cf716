"""Evaluation: the same rows through the base and through the adapter, by the engine that will serve them."""

from typing import Literal

from pydantic import Field

from workers.contract.base import Message
from workers.contract.data import SplitSpec
from workers.contract.training import ThinkContract


class Grader(Message):
    """How an answer is compared with the expected one. The think block is never graded."""

    kind: Literal["exact_match", "json_fields"]
    """`exact_match`: the same text after trimming, or the same JSON value when both are JSON.
    `json_fields`: the share of the expected object's fields that the answer has with the same value."""


class EvaluateSpec(Message):
    """An `evaluate` job. Its one input file, `data`, holds the rows."""

    base_model: str
    """Name of the base at the endpoint."""
    adapter_model: str
    """Immutable name of the adapter version at the endpoint."""
    endpoint: str
    """OpenAI-compatible base URL, ending in /v1."""
    api_key: str
    """Grant that may call exactly these two names, for as long as the job may take."""
    graders: list[Grader] = [Grader(kind="exact_match"), Grader(kind="json_fields")]
    split: SplitSpec | None = None
    """Take only the held-out rows of this split; None takes every row."""
    max_rows: int = Field(default=200, ge=1)
    max_tokens: int = Field(default=512, ge=1)
    concurrency: int = Field(default=8, ge=1, le=256)
    think: ThinkContract
    wait_seconds: int = Field(default=600, ge=0)
    """How long to wait for the adapter to be ready to serve."""


class Grade(Message):
    """One side's answer to one row."""

    output: str
    """The answer, without its reasoning."""
    reasoning: str = ""
    scores: dict[str, float]
    """Grader kind -> 0..1."""
    finish_reason: str = ""
    completion_tokens: int = 0
    think: Literal["valid", "empty", "missing", "truncated"] = "missing"
    margin: float | None = None
    """`Sureness.margin`; None where the answer is empty or the endpoint gives no log-probabilities."""
    reasoning_margin: float | None = None
    reasoning_tokens: int = 0


class EvaluationRow(Message):
    index: int
    """Position in the evaluated rows, from 0."""
    messages: list[dict[str, str]]
    """The prompt."""
    expected: str
    """The expected answer, without reasoning."""
    base: Grade
    adapter: Grade


class SideSummary(Message):
    exact: int
    """Rows with exact_match 1."""
    json_fields: float | None
    """Mean over the rows where the expected answer is a JSON object; None when there are none."""
    think: dict[str, int]
    """Rows per think state."""
    completion_tokens: int
    seconds: float


class EvaluationSummary(Message):
    rows: int
    base: SideSummary
    adapter: SideSummary
