"""A tiny base of every architecture: trained by our engine, then asked in plain PEFT and in vLLM."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from stillhouse.catalog.folder import read_folder
from stillhouse.core.errors import UserError
from tests.workers.training.tiny import FAMILIES, change, make_base
from workers.contract import AdapterManifest, TrainSpec
from workers.data.limited import PACKAGE_ROOT
from workers.serving.reading import TEXT
from workers.training import train
from workers.training.tokenizer import encode, load_tokenizer

pytestmark = pytest.mark.e2e

PUBLISHED = ("r1_qwen", "r1_llama", "r1_0528_qwen3", "qwen3", "qwq", "nemotron_1_5")
TRIED = {"nemotron": "LlamaForCausalLM", "r1_qwen": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
CODES = ["red", "green", "blue", "amber", "black", "white"]
TOKENS = 12
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
Reply = list[tuple[int, float]]
"""Token ids with their log-probabilities."""


@dataclass(frozen=True)
class Trained:
    base: Path
    adapter: Path
    prompts: list[list[int]]


def trained(family: str, folder: Path) -> Trained:
    """Two heads: vLLM's CPU attention wants heads of 32 and more."""
    base = make_base(folder / "base", family, heads=2)
    data = folder / "train.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"Which? {code}"}, {"role": "assistant", **answer}]}
        for code in CODES
        for answer in ({"content": f"{code}!", "reasoning_content": f"it is {code}"},)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    spec = TrainSpec(
        think=FAMILIES[family].think,
        rank=8,
        alpha=16,
        batch_size=6,
        epochs=40,
        learning_rate=1e-2,
        max_length=256,
        quantization="none",
    )
    train(spec, base=base, data=data, eval_data=None, out=folder / "out", on_event=lambda _: None)
    adapter = folder / "out" / "adapter"
    manifest = AdapterManifest.model_validate_json((adapter / "manifest.json").read_text())
    return Trained(base, adapter, [golden.prompt_ids for golden in manifest.golden])


def peft_replies(case: Trained, *, adapter: bool) -> list[Reply]:
    """Greedy, token by token, without a cache: the plainest way there is."""
    from peft import PeftModel  # noqa: PLC0415 - slow to import, so only by whoever needs it

    model = AutoModelForCausalLM.from_pretrained(case.base, dtype=torch.bfloat16)
    if adapter:
        model = PeftModel.from_pretrained(model, case.adapter)
    model.eval()
    found: list[Reply] = []
    for prompt in case.prompts:
        reply: Reply = []
        for _ in range(TOKENS):
            ids = torch.tensor([prompt + [token for token, _ in reply]])
            with torch.no_grad():
                scores = model(input_ids=ids).logits[0, -1].float().log_softmax(-1)
            reply.append((int(scores.argmax()), float(scores.max())))
        found.append(reply)
    return found


def agreeing_tokens(ours: Reply, theirs: Reply) -> int:
    """Tokens until the first different one."""
    pairs = zip(ours, theirs, strict=True)
    return next((index for index, (mine, its) in enumerate(pairs) if mine[0] != its[0]), len(ours))


def test_plain_peft_and_vllm_say_the_same_token_by_token(tmp_path: Path) -> None:
    cases = [trained(family, tmp_path / family) for family in TRIED]
    architectures = [json.loads((case.base / "config.json").read_text())["architectures"] for case in cases]
    assert architectures == [[name] for name in TRIED.values()]
    jobs = [
        {"base": str(case.base), "adapter": str(case.adapter), "prompts": case.prompts, "tokens": TOKENS}
        for case in cases
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "tests.workers.serving.vllm_replies"]
    subprocess.run(
        [*command, str(tmp_path / "jobs.json"), str(tmp_path / "replies.json")],
        cwd=PACKAGE_ROOT,
        env={**os.environ, **ENVIRONMENT, "VLLM_CACHE_ROOT": str(tmp_path / "cache")},
        check=True,
        timeout=540,
    )
    answers = json.loads((tmp_path / "replies.json").read_text())
    for family, case, answer in zip(TRIED, cases, answers, strict=True):
        ours = peft_replies(case, adapter=True)
        for mine, its in zip(ours, answer["adapter"], strict=True):
            assert agreeing_tokens(mine, its) == TOKENS, family
            differences = [abs(one[1] - other[1]) for one, other in zip(mine, its, strict=True)]
            assert max(differences) < 0.1, family
        alone = peft_replies(case, adapter=False)
        assert all(
            agreeing_tokens(mine, without) < TOKENS for mine, without in zip(ours, alone, strict=True)
        ), f"{family}: the adapter has to matter for the comparison to mean anything"


def test_vllm_splits_text_as_training_does_where_the_catalog_takes_the_base(tmp_path: Path) -> None:
    """With the class that the published R1 distills name, and with the one that the catalog asks for."""
    cases = [
        (family, named) for family in PUBLISHED for named in ("LlamaTokenizerFast", "PreTrainedTokenizerFast")
    ]
    bases = [make_base(tmp_path / f"{family}-{named}", family) for family, named in cases]
    for base, (_, named) in zip(bases, cases, strict=True):
        change(base / "tokenizer_config.json", tokenizer_class=named)
    result = subprocess.run(
        [sys.executable, "-m", "tests.workers.serving.vllm_tokens", *map(str, bases)],
        cwd=PACKAGE_ROOT,
        env={**os.environ, **ENVIRONMENT, "VLLM_LOGGING_LEVEL": "ERROR"},
        check=True,
        capture_output=True,
        timeout=300,
    )
    found = [json.loads(line) for line in result.stdout.splitlines() if line.startswith(b"[")]
    for base, case, ids in zip(bases, cases, found, strict=True):
        same = ids == encode(load_tokenizer(base), [TEXT])[0].ids
        assert refusal(base) == ("" if same else "wrong_tokenizer_class"), case


def refusal(base: Path) -> str:
    """Why the catalog does not take the folder; empty where it does."""
    try:
        read_folder(base)
    except UserError as error:
        return error.code
    return ""
