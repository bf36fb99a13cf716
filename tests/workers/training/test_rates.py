"""Think rates, of tiny models that were really taught to reason, or not to."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.workers.training.tiny import FAMILIES, make_base, tokenizer_of
from workers.contract import ThinkRates, TrainSpec
from workers.data.chat import ChatMessage, Row
from workers.training.rates import think_rates
from workers.training.render import Renderer, Sample

CODES = ["red", "green", "blue"]


def rows(*, reasoning: bool) -> list[Row]:
    found: list[Row] = []
    for code in CODES:
        answer: ChatMessage = {"role": "assistant", "content": f"{code}!"}
        if reasoning:
            answer["reasoning_content"] = f"it is {code}"
        found.append({"messages": [{"role": "user", "content": f"Which? {code * 3}"}, answer]})
    return found


def samples_of(family: str, *, reasoning: bool, policy: Any = "traces") -> list[Sample]:
    renderer = Renderer(tokenizer_of(family), FAMILIES[family].think, policy)
    return list(renderer.samples(rows(reasoning=reasoning)))


def taught(family: str, folder: Path, samples: list[Sample], steps: int) -> Any:
    """A tiny base that knows the samples by heart."""
    model = AutoModelForCausalLM.from_pretrained(make_base(folder, family), dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        for sample in samples:
            ids = sample.prompt_ids + sample.target_ids
            labels = [-100] * len(sample.prompt_ids) + sample.target_ids
            model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.config.use_cache = False
    return model.train()


def rates(model: Any, family: str, samples: list[Sample], **settings: Any) -> ThinkRates | None:
    spec = TrainSpec(think=FAMILIES[family].think, **settings)
    return think_rates(model, tokenizer_of(family), samples, spec, torch.device("cpu"))


@pytest.mark.parametrize("family", ["plain", "r1_qwen", "qwen3"])
def test_a_model_that_learned_to_reason(family: str, tmp_path: Path) -> None:
    samples = samples_of(family, reasoning=True)
    model = taught(family, tmp_path / "base", samples, steps=60)
    found = rates(model, family, samples)
    assert found is not None and (found.samples, found.valid) == (3, 3)
    assert model.training and not model.config.use_cache


def test_a_model_that_was_taught_an_empty_block(tmp_path: Path) -> None:
    samples = samples_of("r1_qwen", reasoning=True, policy="no_think")
    model = taught("r1_qwen", tmp_path / "base", samples, steps=60)
    assert rates(model, "r1_qwen", samples) == ThinkRates(samples=3, empty=3, tokens=64)


def test_answers_alone_taught_in_the_wrong_way_are_found_out(tmp_path: Path) -> None:
    """The fault that the rates are there for: prompts that ask for reasoning, answers that have none."""
    asked = samples_of("nemotron", reasoning=True)
    bare = samples_of("nemotron", reasoning=False)
    mixed = [
        Sample(on.row, on.turn, on.prompt_ids, off.target_ids, 0) for on, off in zip(asked, bare, strict=True)
    ]
    model = taught("nemotron", tmp_path / "base", mixed, steps=60)
    found = rates(model, "nemotron", mixed)
    assert found is not None and (found.samples, found.missing) == (3, 3)


def test_reasoning_without_an_end_is_truncated(tmp_path: Path) -> None:
    samples = samples_of("r1_qwen", reasoning=True)
    model = taught("r1_qwen", tmp_path / "base", samples, steps=0)
    found = rates(model, "r1_qwen", samples, think_rate_samples=2)
    assert found is not None and (found.samples, found.truncated) == (2, 2)


@pytest.mark.parametrize(
    ("family", "policy"),
    [("plain", "no_think"), ("qwen3", "no_think"), ("nemotron", "no_think"), ("nemotron_1_5", "no_think")],
)
def test_nothing_is_generated_where_nothing_asks_for_reasoning(family: str, policy: str) -> None:
    assert rates(None, family, samples_of(family, reasoning=True, policy=policy)) is None


def test_answers_that_do_not_fit_say_nothing_about_the_model() -> None:
    samples = samples_of("r1_qwen", reasoning=True)
    assert rates(None, "r1_qwen", samples * 100, think_rate_tokens=16, think_rate_samples=0) is None
    long = [Sample(each.row, each.turn, each.prompt_ids, each.target_ids * 9, 0) for each in samples]
    assert rates(None, "r1_qwen", long, think_rate_tokens=16) is None
