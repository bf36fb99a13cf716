"""Rows as a model sees them, and what the think policies would do with a file: the trainer's own rendering,
nothing trained."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workers.contract import (
    Beyond,
    PolicyCounts,
    PreviewResult,
    PreviewRow,
    PreviewSample,
    PreviewSpec,
    Segment,
    ThinkPolicy,
)
from workers.contract.preview import BEYOND
from workers.contract.weights import template_sha256
from workers.contract.workload import count_tokens
from workers.data import BadRow
from workers.data.chat import ChatMessage, tools_of
from workers.data.rows import NumberedRow, read_numbered
from workers.training.errors import TrainingError
from workers.training.render import Renderer, Sample
from workers.training.tokenizer import load_tokenizer

PROGRESS_ROWS = 200
SHOWN_CHARACTERS, SHOWN_AGAIN = 6000, 1200
"""Of a segment; the middle of a longer one is not shown. SHOWN_AGAIN: of the prompt of a later answer, which
repeats what stands above it."""
SHOWN_ENDS = 6
"""Of a longer chat so many of its first answers are shown, and of its last."""
COUNTED_CHARACTERS = 10_000_000
"""Text that is tokenised for the figures: every answer of a chat comes with all that was said before it."""
POLICIES: tuple[ThinkPolicy, ...] = ("traces", "answer_only", "no_think")


@dataclass(frozen=True, slots=True)
class _Turn:
    """One assistant turn under the policy asked for and without its reasoning."""

    thinks: bool
    """It has reasoning to show."""
    shown: Sample
    """With its reasoning; `trained_from` is where the think block ends."""
    bare: Sample
    """Without any; `trained_from` is where an empty block ends, if the base needs one."""

    def under(self, policy: ThinkPolicy) -> Sample:
        return self.bare if policy == "no_think" else self.shown

    def trained(self, policy: ThinkPolicy) -> int:
        """Tokens in the loss. Only `answer_only` masks the think block."""
        sample = self.under(policy)
        return sample.trained_tokens if policy == "answer_only" else len(sample.target_ids)


def preview(
    spec: PreviewSpec, *, base: Path, data: Path, on_progress: Callable[[int], None] = lambda _: None
) -> PreviewResult:
    """The rows asked for, rendered, and figures of the first `counted_rows`. `on_progress` is told the rows
    counted.

    Raises TrainingError for another template than `spec` names, and for a row that cannot be used.
    """
    begun = time.monotonic()
    if spec.template_sha256 is not None and template_sha256(base) != spec.template_sha256:
        raise TrainingError(
            "base_mismatch",
            f"The base in {base} has another template than the catalog. Register it anew.",
            fault="platform",
        )
    # This policy tells where a think block ends, and is otherwise rendered like `traces`.
    renderer = Renderer(load_tokenizer(base), spec.think, "answer_only")
    figures, shown = _Figures(spec), _Shown(spec, renderer.tokenizer)
    rows = counted = characters = 0
    try:
        for rows, row in enumerate(read_numbered(data), start=1):
            answers, shows = _answers(row), shown.wants(row)
            characters += _characters(row)
            counts = counted == rows - 1 and rows <= spec.counted_rows and characters <= COUNTED_CHARACTERS
            if counts or shows:
                turns = _turns(renderer, row, answers if counts else _ends(answers))
                if counts:
                    counted = rows
                    figures.add(row.number, list(turns.values()))
                if shows:
                    shown.add(row, turns)
            elif not shown.waits:
                break
            if rows % PROGRESS_ROWS == 0:
                on_progress(rows)
    except BadRow as error:
        raise TrainingError("bad_row", f"{data.name}: {error}") from None
    return PreviewResult(
        rows=shown.rows,
        counted=counted,
        complete=rows == counted,
        counts=count_tokens(figures.lengths, rows=counted, seconds=time.monotonic() - begun)
        if counted
        else None,
        beyond=figures.beyond(),
        policies=figures.policies(),
        seconds=round(time.monotonic() - begun, 3),
    )


def _answers(row: NumberedRow) -> list[int]:
    """Places of the assistant's messages."""
    return [place for place, message in enumerate(row.messages) if message["role"] == "assistant"]


def _ends(answers: list[int]) -> list[int]:
    """Those of them that are shown."""
    return answers if len(answers) <= 2 * SHOWN_ENDS else answers[:SHOWN_ENDS] + answers[-SHOWN_ENDS:]


def _characters(row: NumberedRow) -> int:
    """Of all samples of the row, about."""
    total = said = 0
    for message in row.messages:
        said += len(message["content"]) + len(message.get("reasoning_content", ""))
        total += said if message["role"] == "assistant" else 0
    return total


def _turns(renderer: Renderer, row: NumberedRow, answers: list[int]) -> dict[int, _Turn]:
    """The answers at these places. Raises TrainingError that names the row."""
    messages, tools, index = row.messages, tools_of(row.extra), row.number - 1
    bare = [_without_reasoning(message) for message in messages]
    found = {}
    for place in answers:
        shown = renderer.sample(messages, place, index, tools)
        same = messages[: place + 1] == bare[: place + 1]
        plain = shown if same else renderer.sample(bare, place, index, tools)
        found[place] = _Turn(bool(messages[place].get("reasoning_content")), shown, plain)
    return found


def _without_reasoning(message: ChatMessage) -> ChatMessage:
    bare = message.copy()
    bare.pop("reasoning_content", None)
    return bare


@dataclass
class _Figures:
    spec: PreviewSpec
    lengths: list[tuple[int, int]] = field(default_factory=list)
    """Tokens and trained tokens of every sample, under the policy asked for."""
    rows: dict[int, None] = field(default_factory=dict)
    """Numbers of rows beyond the limit."""
    lost: dict[str, int] = field(default_factory=lambda: {"prompt": 0, "close_tag": 0, "answer": 0})
    counts: dict[ThinkPolicy, dict[str, int]] = field(
        default_factory=lambda: {
            policy: dict.fromkeys(PolicyCounts.model_fields.keys() - {"policy"}, 0) for policy in POLICIES
        }
    )

    def add(self, number: int, turns: list[_Turn]) -> None:
        for turn in turns:
            sample = turn.under(self.spec.think_policy)
            self.lengths.append((len(sample), turn.trained(self.spec.think_policy)))
            if len(sample) > self.spec.max_length:
                self.lost[self._loss(sample)] += 1
                if len(self.rows) < BEYOND:
                    self.rows[number] = None
            for policy in POLICIES:
                self._count(self.counts[policy], turn, policy)

    def _loss(self, sample: Sample) -> str:
        """What a trainer that cuts at the limit would lose of a sample."""
        room = self.spec.max_length - len(sample.prompt_ids)
        if room <= 0:
            return "prompt"
        return "close_tag" if room < sample.trained_from else "answer"

    def _count(self, counts: dict[str, int], turn: _Turn, policy: ThinkPolicy) -> None:
        sample = turn.under(policy)
        thinks = turn.thinks and policy != "no_think"
        counts["samples"] += 1
        counts["trained_tokens"] += turn.trained(policy)
        counts["think_tokens"] += sample.trained_from
        counts["with_reasoning"] += thinks
        counts["empty_blocks"] += not thinks and sample.trained_from > 0
        counts["beyond"] += len(sample) > self.spec.max_length

    def beyond(self) -> Beyond:
        return Beyond(samples=sum(self.lost.values()), rows=list(self.rows), **self.lost)

    def policies(self) -> list[PolicyCounts]:
        asked = self.spec.think_policy
        order = (asked, *(policy for policy in POLICIES if policy != asked))
        return [PolicyCounts(policy=policy, **self.counts[policy]) for policy in order]


class _Shown:
    """The rows to show."""

    def __init__(self, spec: PreviewSpec, tokenizer: Any) -> None:
        self._spec, self._tokenizer = spec, tokenizer
        self._missing = set(spec.rows)
        self.rows: list[PreviewRow] = []

    @property
    def waits(self) -> bool:
        """Whether rows to show may still come."""
        return bool(self._missing) or (not self._spec.rows and len(self.rows) < self._spec.shown)

    def wants(self, row: NumberedRow) -> bool:
        return row.number in self._missing if self._spec.rows else self.waits

    def add(self, row: NumberedRow, turns: dict[int, _Turn]) -> None:
        self._missing.discard(row.number)
        answers = _answers(row)
        ends = _ends(answers)
        samples = [self._sample(place, turns[place], again=place != ends[0]) for place in ends]
        left_out = len(answers) - len(ends)
        found = PreviewRow(row=row.number, source=row.source, samples=samples, left_out=left_out)
        self.rows.append(found)

    def _sample(self, place: int, turn: _Turn, *, again: bool) -> PreviewSample:
        """`again`: another answer of the row is shown above."""
        policy = self._spec.think_policy
        sample, trained = turn.under(policy), turn.trained(policy)
        think, size = sample.trained_from, len(sample.prompt_ids) + len(sample.target_ids)
        begun = self._opened(sample.prompt_ids)
        prompt = len(sample.prompt_ids) - begun
        segments = [
            self._segment(
                sample.prompt_ids[:prompt], target=False, most=SHOWN_AGAIN if again else SHOWN_CHARACTERS
            ),
            self._segment(sample.prompt_ids[prompt:], target=False, think=True),
            self._segment(sample.target_ids[:think], think=True, trained=policy != "answer_only"),
            self._segment(sample.target_ids[think:], trained=True),
        ]
        return PreviewSample(
            turn=place,
            segments=[segment for segment in segments if segment.tokens],
            prompt_tokens=len(sample.prompt_ids),
            target_tokens=len(sample.target_ids),
            trained_tokens=trained,
            fits=size <= self._spec.max_length,
        )

    def _opened(self, prompt: list[int]) -> int:
        """How many tokens at the end of the prompt open the think block."""
        if not self._spec.think.prompt_opens:
            return 0
        tail = 1
        while tail < min(len(prompt), 16) and self._spec.think.open not in self._text(prompt[-tail:]):
            tail += 1
        return tail

    def _segment(
        self,
        ids: list[int],
        *,
        target: bool = True,
        think: bool = False,
        trained: bool = False,
        most: int = SHOWN_CHARACTERS,
    ) -> Segment:
        text = self._text(ids)
        if len(text) > most:
            text = f"{text[: most // 2]} […] {text[-most // 2 :]}"
        return Segment(text=text, tokens=len(ids), trained=trained, think=think, target=target)

    def _text(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text).replace("\0", "\ufffd")
