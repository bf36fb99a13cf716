"""How much there is to compute: token counts of a dataset with one base, and the load of a run on them.

Pure arithmetic, torch-free: the platform turns a stored histogram into the load of any settings with it, and
the command line makes the same load from the exact plan.
"""

import math
from collections.abc import Iterable

from pydantic import Field

from workers.contract.base import Message, Sha256
from workers.contract.training import ThinkContract, ThinkPolicy, TrainSpec

EXACT = 128
"""Lengths up to here have a bin each; from here on there are `EXACT` / 2 bins an octave."""

CHARACTERS_PER_TOKEN = 3.6
"""Of English prose and JSON with a vocabulary of 50,000 to 150,000; fewer in most other scripts."""
TEMPLATE_TOKENS = 20
"""Roles and separators of a sample."""


class CountSpec(Message):
    """A `count` job: render a dataset version for one base and count the tokens. Its one input is `data`."""

    base: str
    """Catalog id of the base, whose tokenizer and template are used."""
    base_digest: Sha256 | None = None
    template_sha256: Sha256 | None = None
    think: ThinkContract
    think_policy: ThinkPolicy
    memory_bytes: int = Field(default=4 * 1024**3, gt=0)
    """Address-space limit of the counting process."""
    seconds: int = Field(default=1800, gt=0)
    """Limit on its processor time, and on the clock."""


class TokenBin(Message):
    """The samples of about one length."""

    longest: int = Field(ge=1)
    """Upper edge of the bin, in tokens. Every power of two is an edge."""
    samples: int = Field(ge=1)
    tokens: int = Field(ge=1)
    """Of all its samples together."""
    trained_tokens: int = Field(ge=0)
    """Of those, the ones that enter the loss."""


class TokenCounts(Message):
    """The token histogram of a dataset with one base and think policy."""

    rows: int
    bins: list[TokenBin]
    """By length, shortest first."""
    seconds: float
    """Time the count took."""

    @property
    def samples(self) -> int:
        return sum(each.samples for each in self.bins)

    @property
    def tokens(self) -> int:
        return sum(each.tokens for each in self.bins)

    @property
    def longest(self) -> int:
        return self.bins[-1].longest if self.bins else 0


class Workload(Message):
    """What goes through the model in one run, all epochs together."""

    samples: int = Field(ge=0)
    """Different training samples."""
    excluded: int = Field(ge=0)
    """Training samples left out because they are too long."""
    tokens: int = Field(ge=0)
    trained_tokens: int = Field(ge=0)
    squared_tokens: int = Field(ge=0)
    """Sum of the squared sample lengths: what attention grows with."""
    steps: int = Field(ge=0)
    packs: int = Field(ge=0)
    largest_pack: int = Field(ge=0)
    """Tokens of the largest pack."""
    longest: int = Field(ge=0)
    """Tokens of the longest sample."""
    heldout_tokens: int = Field(default=0, ge=0)
    """Tokens of the held-out samples; they go through the model before and after training."""
    heldout_trained_tokens: int = Field(default=0, ge=0)


def count_tokens(lengths: Iterable[tuple[int, int]], *, rows: int, seconds: float) -> TokenCounts:
    """The histogram of samples given as (tokens, trained tokens)."""
    bins: dict[int, list[int]] = {}
    for tokens, trained in lengths:
        found = bins.setdefault(bin_edge(tokens), [0, 0, 0])
        found[0] += 1
        found[1] += tokens
        found[2] += trained
    return TokenCounts(
        rows=rows,
        bins=[
            TokenBin(longest=edge, samples=samples, tokens=tokens, trained_tokens=trained)
            for edge, (samples, tokens, trained) in sorted(bins.items())
        ],
        seconds=round(seconds, 3),
    )


def rough_counts(*, rows: int, turns: int, characters: int) -> TokenCounts:
    """A guess from a dataset's report, until it is counted: all samples alike, a third of each trained."""
    samples = max(1, turns)
    each = math.ceil(characters / CHARACTERS_PER_TOKEN / samples) + TEMPLATE_TOKENS
    guess = TokenBin(longest=each, samples=samples, tokens=each * samples, trained_tokens=each * samples // 3)
    return TokenCounts(rows=rows, bins=[guess], seconds=0.0)


def bin_edge(tokens: int) -> int:
    """The upper edge of the bin that a length falls into: at most 1/64 above the length."""
    if tokens <= EXACT:
        return tokens
    width = 1 << ((tokens - 1).bit_length() - EXACT.bit_length() + 1)
    return -(-tokens // width) * width


def workload_of(counts: TokenCounts, spec: TrainSpec, *, heldout: TokenCounts | None = None) -> Workload:
    """The load of a run over counted data, by expectation: which sample comes when is not known here.

    `heldout` are the counts of separate evaluation data; else `heldout_share` of `counts` is held out.
    """
    fitting = [each for each in counts.bins if each.longest <= spec.max_length]
    share = 1 - spec.heldout_share if heldout is None else 1.0
    in_all, kept = counts.samples, sum(each.samples for each in fitting)
    trained = max(1, round(kept * share)) if kept else 0
    seen = max(1, round(trained * spec.epochs)) if trained else 0
    steps = math.ceil(seen / spec.batch_size)
    if spec.max_steps:
        steps = min(steps, spec.max_steps)
        seen = min(seen, steps * spec.batch_size)
    times = seen / kept if kept else 0.0
    tokens = sum(each.tokens for each in fitting)
    squares = sum(each.tokens**2 / each.samples for each in fitting)
    largest, packs = _packs(tokens, squares, kept, spec, steps, fitting[-1].longest if fitting else 0)
    held = heldout.bins if heldout is not None else fitting
    held_share = 1.0 if heldout is not None else spec.heldout_share
    held = [each for each in held if each.longest <= spec.max_length]
    return Workload(
        samples=trained,
        excluded=round((in_all - kept) * share),
        tokens=round(tokens * times),
        trained_tokens=round(sum(each.trained_tokens for each in fitting) * times),
        squared_tokens=round(squares * times),
        steps=steps,
        packs=packs,
        largest_pack=largest,
        longest=fitting[-1].longest if fitting else 0,
        heldout_tokens=round(sum(each.tokens for each in held) * held_share),
        heldout_trained_tokens=round(sum(each.trained_tokens for each in held) * held_share),
    )


def _packs(
    tokens: int, squares: float, samples: int, spec: TrainSpec, steps: int, longest: int
) -> tuple[int, int]:
    """(tokens of the largest pack, number of packs) for steps of `batch_size` samples drawn at random.

    A step's tokens scatter around `batch_size` means by the root of `batch_size` deviations, and the largest
    of n such sums lies about sqrt(2 ln n) of those above.
    """
    if not samples or not steps:
        return 0, 0
    batch = min(spec.batch_size, samples)
    mean = tokens / samples
    deviation = math.sqrt(max(0.0, squares / samples - mean**2) * batch)
    step = batch * mean
    largest_step = min(batch * longest, step + math.sqrt(2 * math.log(max(2, steps))) * deviation)
    largest = max(longest, round(min(spec.micro_batch_tokens, largest_step)))
    return largest, steps * max(1, math.ceil(step / max(spec.micro_batch_tokens, mean)))
