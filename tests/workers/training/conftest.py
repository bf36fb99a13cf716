"""A tiny base and a few rows, made once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.training.tiny import make_base
from workers.contract import TrainResult, TrainSpec
from workers.training import train

CODES = ["red", "green", "blue", "amber", "black", "white", "brown", "pink", "grey", "gold", "lime", "teal"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny matrices are not worth a second thread; waiting for each other costs most on a busy machine."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "tiny")


def chat(question: str, answer: str, reasoning: str = "") -> dict[str, Any]:
    turn = {"role": "assistant", "content": answer}
    if reasoning:
        turn["reasoning_content"] = reasoning
    return {"messages": [{"role": "user", "content": question}, turn]}


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve chats of different lengths."""
    rows = [
        chat(f"Which code? {code * (1 + index % 3)}", f"{code}!", f"it is {code}")
        for index, code in enumerate(CODES)
    ]
    return write_rows(tmp_path_factory.mktemp("data") / "train.jsonl", rows)


SPEC = TrainSpec(
    rank=4,
    alpha=8,
    batch_size=4,
    learning_rate=1e-2,
    epochs=2,
    max_length=256,
    micro_batch_tokens=256,
    golden_samples=2,
    think_rate_samples=2,
    think_rate_tokens=64,
)

SETTINGS = TrainSpec.model_fields.keys() - {"base"}
Run = Callable[..., TrainResult]


@pytest.fixture
def run(base: Path, data: Path, tmp_path: Path) -> Run:
    """Train the tiny base in `tmp_path`/out; arguments and settings of the spec can be replaced by name."""

    def run(**changes: Any) -> TrainResult:
        arguments: dict[str, Any] = {
            "base": base,
            "data": data,
            "eval_data": None,
            "out": tmp_path / "out",
            "on_event": lambda _: None,
        }
        # `base` is a setting, too; here it is always the folder.
        settings = {name: changes.pop(name) for name in list(changes) if name in SETTINGS}
        return train(SPEC.model_copy(update=settings), **(arguments | changes))

    return run
