"""A suite: every prompt to the base, then to the adapter, graded, row beside row."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path

from workers.contract import EvaluateSpec, EvaluationRow, EvaluationSummary, Grade, SideSummary
from workers.data.think import judge_split, judge_text
from workers.evaluation.endpoint import REFUSED, Answer, Endpoint
from workers.evaluation.errors import EvaluationCancelled, EvaluationError
from workers.evaluation.graders import grade
from workers.evaluation.prompts import Prompt

ROWS_FILE = "rows.jsonl"
SHORTEST_ROOM = 64
"""Tokens that any reply may take."""
ASK_EVERY = 0.5
"""Seconds between two looks at whether the evaluation is still wanted."""


@dataclass(frozen=True)
class SuiteProgress:
    message: str
    done: int
    """Answers graded."""
    total: int
    """Answers there will be: two a row."""


OnProgress = Callable[[SuiteProgress], None]
ShouldStop = Callable[[], bool]


def evaluate(
    spec: EvaluateSpec,
    prompts: Sequence[Prompt],
    *,
    out: Path,
    on_progress: OnProgress = lambda progress: None,
    should_stop: ShouldStop = lambda: False,
) -> EvaluationSummary:
    """Run the suite; write `out`/rows.jsonl, an EvaluationRow a line, and return the summary.

    Raises EvaluationError, and EvaluationCancelled when `should_stop` says so.
    """
    return asyncio.run(_evaluate(spec, prompts, out, on_progress, should_stop))


async def _evaluate(
    spec: EvaluateSpec, prompts: Sequence[Prompt], out: Path, on_progress: OnProgress, should_stop: ShouldStop
) -> EvaluationSummary:
    suite = asyncio.create_task(_both_sides(spec, prompts, on_progress))
    while not suite.done():
        await asyncio.wait({suite}, timeout=ASK_EVERY)
        if not suite.done() and should_stop():
            suite.cancel()
            await asyncio.wait({suite})
            raise EvaluationCancelled
    base, adapter = suite.result()
    _write_rows(out / ROWS_FILE, prompts, base, adapter)
    return EvaluationSummary(rows=len(prompts), base=base.summary(), adapter=adapter.summary())


@dataclass(frozen=True)
class Side:
    """One model's grades, in row order, and the wall-clock seconds they took."""

    grades: list[Grade]
    seconds: float

    def summary(self) -> SideSummary:
        fields = [grade.scores["json_fields"] for grade in self.grades if "json_fields" in grade.scores]
        return SideSummary(
            exact=sum(grade.scores.get("exact_match") == 1.0 for grade in self.grades),
            json_fields=sum(fields) / len(fields) if fields else None,
            think=dict(Counter(grade.think for grade in self.grades)),
            completion_tokens=sum(grade.completion_tokens for grade in self.grades),
            seconds=self.seconds,
        )


async def _both_sides(
    spec: EvaluateSpec, prompts: Sequence[Prompt], on_progress: OnProgress
) -> tuple[Side, Side]:
    """The base first: the adapter may still be on its way to the engine."""
    total = 2 * len(prompts)
    async with Endpoint(
        spec.endpoint, spec.api_key, concurrency=spec.concurrency, max_tokens=room_for(prompts, spec)
    ) as endpoint:
        on_progress(SuiteProgress("Asking the base.", 0, total))
        await endpoint.wait_until_ready(spec.base_model, spec.wait_seconds)
        base = await _side(endpoint, spec.base_model, spec, prompts, "base", 0, on_progress)
        on_progress(SuiteProgress("Waiting for the adapter to be ready to serve.", len(prompts), total))
        await endpoint.wait_until_ready(spec.adapter_model, spec.wait_seconds)
        adapter = await _side(
            endpoint, spec.adapter_model, spec, prompts, "adapter", len(prompts), on_progress
        )
    return base, adapter


def room_for(prompts: Sequence[Prompt], spec: EvaluateSpec) -> int:
    """Tokens a reply may take, for either side.

    A token is at least a character, so no reply like the expected ones needs more tokens than the longest of
    them has characters, and a base that rambles is cut off there. A base that reasons of its own accord may
    think for longer than the data shows: it gets all of `max_tokens`.
    """
    if spec.think.family != "plain":
        return spec.max_tokens
    return min(spec.max_tokens, max(SHORTEST_ROOM, *(prompt.length for prompt in prompts)))


async def _side(
    endpoint: Endpoint,
    model: str,
    spec: EvaluateSpec,
    prompts: Sequence[Prompt],
    name: str,
    before: int,
    on_progress: OnProgress,
) -> Side:
    """All prompts through one model, `spec.concurrency` at a time."""
    slots, done, began = asyncio.Semaphore(spec.concurrency), 0, time.monotonic()

    async def one(prompt: Prompt) -> Grade:
        nonlocal done
        async with slots:
            answer = await endpoint.ask(model, prompt.messages, prompt.tools)
        done += 1
        on_progress(
            SuiteProgress(f"The {name} answered {done} of {len(prompts)}.", before + done, 2 * len(prompts))
        )
        return _graded(answer, prompt.expected, spec)

    grades = await _gather([one(prompt) for prompt in prompts])
    if all(grade.finish_reason == REFUSED for grade in grades):
        raise EvaluationError("prompts_refused", f"The endpoint refused every prompt sent to {model} (400).")
    return Side(grades, time.monotonic() - began)


async def _gather(work: Sequence[Coroutine[None, None, Grade]]) -> list[Grade]:
    """All results in order; the first error stops the rest and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except* EvaluationError as errors:
        first = errors.exceptions[0]
    else:
        return [task.result() for task in tasks]
    raise first


def _graded(answer: Answer, expected: str, spec: EvaluateSpec) -> Grade:
    if answer.is_split:
        thought = judge_split(answer.content, answer.reasoning, answer.finish_reason)
    else:
        thought = judge_text(answer.content, spec.think)
    return Grade(
        output=thought.answer,
        reasoning=thought.reasoning,
        scores=grade(thought.answer, expected, spec.graders),
        finish_reason=answer.finish_reason,
        completion_tokens=answer.completion_tokens,
        think=thought.state,
        margin=answer.sure.margin if thought.answer else None,
        reasoning_margin=answer.sure.reasoning_margin,
        reasoning_tokens=answer.sure.reasoning_tokens,
    )


def _write_rows(path: Path, prompts: Sequence[Prompt], base: Side, adapter: Side) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for index, prompt in enumerate(prompts):
            row = EvaluationRow(
                index=index,
                messages=prompt.shown,
                expected=prompt.expected,
                base=base.grades[index],
                adapter=adapter.grades[index],
            )
            file.write(row.model_dump_json() + "\n")
    os.replace(partial, path)
