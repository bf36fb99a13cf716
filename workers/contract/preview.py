"""Rows as a model sees them: rendered with a base's template, trained tokens marked, lengths counted."""

from pydantic import Field

from workers.contract.base import Message, Sha256
from workers.contract.training import ThinkContract, ThinkPolicy
from workers.contract.workload import TokenCounts

BEYOND = 200
"""Rows beyond the limit that are named."""


class PreviewSpec(Message):
    """A `preview` job: its one input is `data`, the normalised rows. Nothing is written."""

    base: str
    """Catalog id of the base, whose tokenizer and template are used."""
    template_sha256: Sha256 | None = None
    think: ThinkContract
    think_policy: ThinkPolicy
    """By which the rows are shown and the histogram is made."""
    max_length: int = Field(default=2048, ge=16)
    """Limit on a sample, in tokens."""
    rows: list[int] = Field(default=[], max_length=200)
    """Numbers of the rows to show; empty: the first `shown`."""
    shown: int = Field(default=20, ge=0, le=200)
    counted_rows: int = Field(default=20_000, ge=0)
    """Rows that are counted, fewer where they are long; `counted` says how far the figures go. 0: rows are
    only shown."""
    memory_bytes: int = Field(default=4 * 1024**3, gt=0)
    seconds: int = Field(default=1800, gt=0)


class Segment(Message):
    """A run of tokens that are treated alike."""

    text: str
    tokens: int
    trained: bool
    """In the loss."""
    think: bool
    """Reasoning, its tags included."""
    target: bool
    """Part of the answer; else of the prompt."""


class PreviewSample(Message):
    """One assistant turn of a row, as it goes into training."""

    turn: int
    """Index of its message in the row, from 0."""
    segments: list[Segment]
    """In order; together they are what the model is shown. Long texts are cut in the middle, marked by
    ` […] `; `tokens` is of the whole."""
    prompt_tokens: int
    target_tokens: int
    trained_tokens: int
    fits: bool
    """Not longer than `max_length`; what does not fit is left out of training, never cut."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.target_tokens


class PreviewRow(Message):
    row: int
    source: str = ""
    samples: list[PreviewSample]
    """Of a long chat the first and the last of them."""
    left_out: int = 0
    """Samples between those that are not shown here; they are trained on like the others."""


class PolicyCounts(Message):
    """What one think policy would do with these rows."""

    policy: ThinkPolicy
    samples: int
    trained_tokens: int
    think_tokens: int
    """Tokens of think blocks, tags included; trained on by `traces` alone."""
    with_reasoning: int
    """Samples that are shown to the model with reasoning."""
    empty_blocks: int
    """Samples with an empty think block, as bases that always write one need."""
    beyond: int
    """Samples that are longer than `max_length` and would be left out."""


class Beyond(Message):
    """Samples longer than the limit: what a trainer that cuts would lose. Here they are left out, named."""

    samples: int = 0
    rows: list[int] = []
    """Numbers of the first BEYOND rows they come from."""
    prompt: int = 0
    """Samples whose prompt alone reaches the limit: the whole answer would be lost."""
    close_tag: int = 0
    """Samples whose reasoning would be cut before its closing tag."""
    answer: int = 0
    """Samples whose answer would be cut after that."""


class PreviewResult(Message):
    """What a `preview` job ends with."""

    rows: list[PreviewRow]
    counted: int
    """Rows that the figures below speak of."""
    complete: bool
    """Whether these are all rows of the file."""
    counts: TokenCounts | None
    """Histogram of sample lengths under the policy asked for; None when nothing was counted."""
    beyond: Beyond
    policies: list[PolicyCounts]
    """The three policies, the one asked for first."""
    seconds: float
