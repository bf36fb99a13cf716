"""What calibrated confidence is worth: how much has to be asked elsewhere for the same quality.

    python examples/contracts/generate.py --more 400 more.jsonl
    python benchmarks/escalation.py --url http://127.0.0.1:8000/v1 --key ... --model clauses --rows more.jsonl

Asks every question once (a gateway, or an engine itself), with log-probabilities. The remote model is taken
to be always right, so a rule is as good as the questions it picks: by chance, by the mean entropy of the
answer's tokens or of all, the reasoning's too, or by our confidence. That is fitted to a third of the
questions, as to an evaluation; all rules are judged on the others. Qualities to reach: half and nine tenths
of what is wrong here put right. Ends with one JSON line; intervals are bootstrapped over questions.
"""

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from benchmarks.report import Line  # noqa: E402

FITTED_TO, ROUNDS, TOP = 1 / 3, 1000, 20
QUALITIES = {"half": 0.5, "nine_tenths": 0.9}
"""Parts of the wrong answers to put right."""


@dataclass(frozen=True)
class Answer:
    right: bool
    sure: Any
    """Sureness."""
    entropy: float
    """Mean over the answer's tokens, of the likeliest TOP,"""
    entropy_of_all: float
    """and over those of the reasoning and the answer."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=Path, nargs="+", required=True)
    parser.add_argument("--at-once", type=int, default=8, help="questions at a time")
    parser.add_argument("--seconds", type=float, default=3600, help="ask no more questions after these")
    chosen = parser.parse_args()
    line, until = Line("escalation"), time.monotonic() + chosen.seconds
    questions = [
        json.loads(line) for file in chosen.rows for line in file.read_text(encoding="utf-8").splitlines()
    ]
    with httpx.Client(base_url=chosen.url.rstrip("/"), timeout=600, trust_env=False) as client:
        client.headers["authorization"] = f"Bearer {chosen.key}"
        with ThreadPoolExecutor(chosen.at_once) as pool:
            found = pool.map(
                lambda row: ask(client, chosen.model, row["messages"]) if time.monotonic() < until else None,
                questions,
            )
            answers = [answer for answer in found if answer is not None]
    line.end(report(answers, chosen.model))


def report(answers: list[Answer], model: str) -> dict[str, Any]:
    """The figures."""
    random.Random(0).shuffle(answers)
    fitted = round(FITTED_TO * len(answers))
    evaluation, answers = answers[:fitted], answers[fitted:]
    rules = {
        "random": [0.0] * len(answers),
        "entropy": [-answer.entropy for answer in answers],
        "entropy_of_all": [-answer.entropy_of_all for answer in answers],
        "confidence": confidences(evaluation, answers),
    }
    right = [answer.right for answer in answers]
    return {
        "model": model,
        "fitted_to": fitted,
        "questions": len(answers),
        "right_here": sum(right),
        "share_asked_elsewhere": {
            quality: {name: with_interval(right, keep, part) for name, keep in rules.items()}
            for quality, part in QUALITIES.items()
        },
        "confidence_less": {
            quality: {
                name: difference(right, rules["confidence"], keep, part)
                for name, keep in rules.items()
                if name != "confidence"
            }
            for quality, part in QUALITIES.items()
        },
    }


def ask(client: httpx.Client, model: str, messages: list[dict[str, str]]) -> Answer:
    body = {"model": model, "messages": messages[:-1], "temperature": 0, "max_tokens": 512, "seed": 0}
    answer = client.post("/chat/completions", json={**body, "logprobs": True, "top_logprobs": TOP})
    answer.raise_for_status()
    (choice,) = answer.json()["choices"]
    content = (choice["logprobs"] or {}).get("content") or []
    return judged(messages, choice["message"]["content"] or "", content)


def judged(messages: list[dict[str, str]], text: str, content: list[dict[str, Any]]) -> Answer:
    """One answer, its reasoning in front, beside the expected one, which is the last message."""
    from workers.contract.confidence import THINK_END, answer_start, sureness  # noqa: PLC0415 - the path is set
    from workers.evaluation.graders import exact_match  # noqa: PLC0415

    _, closed, after = text.rpartition(THINK_END)
    said = "" if not closed and after.lstrip().startswith("<think>") else after.strip()
    entropies = [_entropy(entry) for entry in content]
    expected = messages[-1]["content"].rpartition(THINK_END)[2].strip()
    return Answer(
        exact_match(said, expected) == 1,
        sureness(content if said else []),
        statistics.fmean(entropies[answer_start(content) :] or [math.inf]),
        statistics.fmean(entropies or [math.inf]),
    )


def _entropy(entry: dict[str, Any]) -> float:
    return -math.fsum(math.exp(each["logprob"]) * each["logprob"] for each in entry["top_logprobs"])


def confidences(evaluation: Sequence[Answer], answers: Sequence[Answer]) -> list[float]:
    """In each answer, by a calibration that has seen none of them; the margin orders equal ones."""
    from stillhouse.evaluations.isotonic import fit  # noqa: PLC0415

    calibration = fit([(answer.sure, answer.right) for answer in evaluation])
    if calibration is None:
        raise SystemExit("too few answers came with log-probabilities")
    return [calibration.confidence(answer.sure) + 1e-6 * (answer.sure.margin or -1) for answer in answers]


def share_needed(right: Sequence[bool], keep: Sequence[float], part: float, tie: random.Random) -> float:
    """Share of questions to ask elsewhere, the least kept first, until that part of the wrong is right."""
    wrong = sum(not each for each in right)
    if not wrong:
        return 0.0
    order = sorted(range(len(right)), key=lambda index: (keep[index], tie.random()))
    put_right = 0
    for asked, index in enumerate(order, start=1):
        put_right += not right[index]
        if put_right >= part * wrong:
            return asked / len(right)
    raise AssertionError("every question was asked")


def difference(
    right: Sequence[bool], ours: Sequence[float], theirs: Sequence[float], part: float
) -> dict[str, float]:
    """By how much smaller the share is by our rule than by theirs, on the same bootstrapped questions: the
    mean and the middle 95 %. Ours is better where all of it is above 0."""
    draw, drawn = random.Random(2), []
    for _ in range(ROUNDS):
        some = [draw.randrange(len(right)) for _ in right]
        was = [right[i] for i in some]
        one = share_needed(was, [ours[i] for i in some], part, draw)
        drawn.append(share_needed(was, [theirs[i] for i in some], part, draw) - one)
    cuts = statistics.quantiles(drawn, n=40)
    mean = statistics.fmean(drawn)
    return {"share": round(mean, 3), "low": round(cuts[0], 3), "high": round(cuts[-1], 3)}


def with_interval(right: Sequence[bool], keep: Sequence[float], part: float) -> dict[str, float]:
    """Mean over ties, and the middle 95 % over bootstrapped sets of questions."""
    draw = random.Random(1)
    as_is = statistics.fmean(share_needed(right, keep, part, draw) for _ in range(ROUNDS))
    drawn = []
    for _ in range(ROUNDS):
        some = [draw.randrange(len(right)) for _ in right]
        drawn.append(share_needed([right[i] for i in some], [keep[i] for i in some], part, draw))
    cuts = statistics.quantiles(drawn, n=40)
    return {"share": round(as_is, 3), "low": round(cuts[0], 3), "high": round(cuts[-1], 3)}


if __name__ == "__main__":
    main()
