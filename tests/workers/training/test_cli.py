"""`python -m workers train` and `base` as scripts see them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.workers.training.tiny import make_base
from workers import training as engine
from workers.contract import TrainResult
from workers.data.limited import PACKAGE_ROOT
from workers.training.settings import spec_for

SETTINGS = [
    "rank=4",
    "batch_size=4",
    "max_length=256",
    "epochs=4",
    "learning_rate=1e-2",
    "checkpoint_every=2",
]


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "workers", *map(str, arguments)]


def workers(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=PACKAGE_ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def train(base: Path, data: Path, out: Path, *more: str) -> list[Any]:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return ["train", "--base", base, "--data", data, "--out", out, *settings, *more]


@pytest.mark.e2e
def test_a_killed_run_goes_on_to_the_same_losses_and_ends_with_one_json_line(
    base: Path, data: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    engine.train(
        spec_for(base, None, SETTINGS),
        base=base,
        data=data,
        eval_data=None,
        out=whole,
        on_event=lambda _: None,
    )
    killed = subprocess.Popen(
        command(*train(base, data, out)),
        cwd=PACKAGE_ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert killed.stderr is not None
    for line in killed.stderr:
        if line.startswith("step 5/"):
            killed.send_signal(signal.SIGKILL)
            break
    killed.wait()
    assert not (out / "adapter").exists()

    resumed = workers(*train(base, data, out, "--resume"))
    assert resumed.returncode == 0, resumed.stderr
    assert "step 4/" not in resumed.stderr and "step 12/12" in resumed.stderr
    assert (out / "losses.jsonl").read_text() == (whole / "losses.jsonl").read_text()
    result = TrainResult.model_validate_json(resumed.stdout)
    assert resumed.stdout.count("\n") == 1
    assert result.steps == 12 and result.adapter == str(out / "adapter")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (["--set", "rank=100"], "rank_too_large"),
        (["--set", "nope=1"], "bad_setting"),
        (["--spec", "none"], "bad_spec_file"),
    ],
)
def test_a_refusal_is_a_sentence_and_status_1(
    base: Path, data: Path, tmp_path: Path, change: list[str], code: str
) -> None:
    done = workers(*train(base, data, tmp_path / "out"), *change)
    assert done.returncode == 1
    assert f"error: {code}: " in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_base_prints_facts_and_keeps_them(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", layers=1)
    done = workers("base", base)
    facts = json.loads(done.stdout)
    assert facts == json.loads((base / "base.json").read_text())
    assert facts["context_length"] == 512 and facts["architecture"] == "LlamaForCausalLM"
    assert len(facts["digest"]) == len(facts["template_sha256"]) == 64
    assert workers("base", tmp_path).returncode == 1


def test_importing_the_engine_loads_no_torch() -> None:
    script = (
        "import sys, workers.training, workers.training.base, workers.data; sys.exit('torch' in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", script], cwd=PACKAGE_ROOT, env=os.environ, check=False
        ).returncode
        == 0
    )
