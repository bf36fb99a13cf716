"""What both sides train on, and the settings they share."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.contract import TrainSpec
from workers.training.base import open_base
from workers.training.settings import spec_for
from workers.training.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
CONTRACTS = ROOT / "examples" / "contracts"
PACK_TOKENS = 2048
FULL_DOCUMENTS = 4
"""Documents in a full pack, all of nearly the same length."""
SHARED: dict[str, Any] = {
    "rank": 16,
    "alpha": 32,
    "dropout": 0.0,
    "learning_rate": 1e-3,
    "schedule": "cosine",
    # TRL's warm-up begins at a rate of 0, ours at one step's: none, so that both follow one schedule.
    "warmup_ratio": 0.0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "golden_samples": 0,
}


@dataclass(frozen=True)
class Workload:
    """Data, and the spec that says how both sides train on it."""

    name: str
    data: Path
    spec: TrainSpec
    about: str


def contracts(base: Path, steps: int, *, batch_size: int = 8, seed: int = 0) -> Workload:
    """The demonstration's data (mean 83 tokens), `batch_size` samples a step; 8 is TRL's default and ours."""
    data = CONTRACTS / "train.jsonl"
    about = f"the contract data, {batch_size} samples a step"
    return Workload("contracts", data, _spec(base, steps, batch_size, seed, rows=_count(data)), about)


def full_packs(
    base: Path,
    steps: int,
    folder: Path,
    *,
    tokens: int = PACK_TOKENS,
    documents: int = FULL_DOCUMENTS,
    packs: int = 1,
) -> Workload:
    """Steps of `packs` packs of nearly `tokens` tokens, each of `documents` documents of equal length."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "full.jsonl"
    batch_size = documents * packs
    rows = _documents(load_tokenizer(base), steps * batch_size, tokens // documents)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    about = (
        f"{packs} full pack(s) of {tokens} tokens a step: {documents} document(s) each, of contract clauses"
    )
    spec = _spec(base, steps, batch_size, seed=0, rows=len(rows), tokens=tokens)
    return Workload("full", data, spec, about)


def _spec(
    base: Path, steps: int, batch_size: int, seed: int, *, rows: int, tokens: int = PACK_TOKENS
) -> TrainSpec:
    epochs = max(1.0, steps * batch_size / rows)
    values = {**SHARED, "batch_size": batch_size, "max_steps": steps, "epochs": epochs, "seed": seed}
    values["micro_batch_tokens"] = tokens
    values["max_length"] = min(tokens, open_base(base).context_length or tokens)
    return spec_for(base, None, [f"{name}={value}" for name, value in values.items()])


def _documents(tokenizer: Any, count: int, tokens: int) -> list[dict[str, Any]]:
    """Chats of as many clauses as fit into `tokens` tokens."""
    lines = (CONTRACTS / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line)["messages"] for line in lines]
    rng = random.Random(0)
    return [{"messages": _filled(tokenizer, rows, rng, tokens)} for _ in range(count)]


def _filled(tokenizer: Any, rows: list[Any], rng: random.Random, tokens: int) -> list[dict[str, str]]:
    """Clauses until the next does not fit, then words of that one, as part of the question."""
    fixed = _length(tokenizer, _joined(rows[:1])) - _length_of_clause(tokenizer, rows[0])
    sizes = [_length_of_clause(tokenizer, row) for row in rows]
    clauses: list[Any] = []
    room = tokens - fixed
    while not clauses or room > 0:
        index = rng.randrange(len(rows))
        clauses.append(rows[index])
        room -= sizes[index]
    while len(clauses) > 1 and _length(tokenizer, _joined(clauses)) > tokens:
        clauses.pop()
    clause = rng.choice(rows)
    chat = _joined(clauses)
    for word in clause[1]["content"].split() * 4:
        longer = [chat[0], {"role": "user", "content": f"{chat[1]['content']} {word}"}, chat[2]]
        if _length(tokenizer, longer) > tokens:
            break
        chat = longer
    return chat


def _joined(clauses: list[Any]) -> list[dict[str, str]]:
    """One chat of several: their questions one below the other, then their answers."""
    system, *_ = clauses[0]
    asked = "\n".join(messages[1]["content"] for messages in clauses)
    answered = "\n".join(messages[2]["content"] for messages in clauses)
    return [system, {"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def _length(tokenizer: Any, messages: list[dict[str, str]]) -> int:
    return len(tokenizer(tokenizer.apply_chat_template(messages, tokenize=False))["input_ids"])


def _length_of_clause(tokenizer: Any, messages: Any) -> int:
    return sum(len(tokenizer(f"{message['content']}\n")["input_ids"]) for message in messages[1:])


def _count(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())
