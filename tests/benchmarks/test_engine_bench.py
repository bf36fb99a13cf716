"""The pieces of benchmarks/engine on a tiny base, so that the scripts do not rot. Nothing is timed here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.engine import gate
from benchmarks.engine.__main__ import ratio
from benchmarks.engine.arithmetic import step_flops
from benchmarks.engine.export import export, export_lora
from benchmarks.engine.gpu import longest
from benchmarks.engine.peer import IGNORED, labels
from benchmarks.engine.turns import start
from benchmarks.engine.workload import contracts, full_packs
from tests.workers.training.tiny import make_base
from workers.contract import TrainSpec
from workers.contract.estimate import BaseShape

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bench") / "tiny")


def test_our_side_trains_in_turns_and_reports_what_it_took(base: Path, tmp_path: Path) -> None:
    workload = contracts(base, STEPS, batch_size=2)
    exported = export(workload, base, tmp_path)
    (tmp_path / "spec.json").write_text(workload.spec.model_dump_json(), encoding="utf-8")
    arguments = ["--base", str(base), "--data", str(workload.data), "--spec", str(tmp_path / "spec.json")]
    side = start(
        "ours",
        sys.executable,
        "benchmarks.engine.ours",
        [*arguments, "--out", str(tmp_path / "out")],
        1,
        tmp_path,
    )
    try:
        side.until_ready()
        assert len(side.take(1)) == 1
        assert len(side.take(STEPS - 1)) == STEPS - 1
        side.finish()
    finally:
        side.stop()
    assert len(side.facts["losses"]) == STEPS == len(exported.steps)
    assert side.facts["peak_resident_bytes"] > 0


def test_a_side_that_dies_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    side = start("ours", sys.executable, "benchmarks.engine.ours", ["--base", "nowhere"], 1, tmp_path)
    with pytest.raises(SystemExit, match="required"):
        side.until_ready()
    side.stop()


def test_the_peer_is_given_the_samples_of_our_plan_and_our_lora(base: Path, tmp_path: Path) -> None:
    workload = contracts(base, STEPS)
    exported = export(workload, base, tmp_path)
    export_lora(base, workload.spec, tmp_path / "lora.safetensors")
    content = json.loads((tmp_path / "samples.json").read_text(encoding="utf-8"))
    assert content["steps"] == exported.steps
    assert [len(step) for step in exported.steps] == [8] * STEPS
    first = content["train"][0]
    masked = labels(first)
    assert len(masked) == len(first["ids"])
    assert sum(label != IGNORED for label in masked) == exported.train[0].trained_tokens
    assert masked[-1] == first["ids"][-1]
    assert (tmp_path / "lora.safetensors").stat().st_size > 0


def test_full_packs_are_full_and_never_too_long(base: Path, tmp_path: Path) -> None:
    exported = export(full_packs(base, STEPS, tmp_path, tokens=512, documents=1), base, tmp_path)
    assert len(exported.step_tokens) == STEPS
    assert all(0.9 * 512 < tokens <= 512 for tokens in exported.step_tokens)


def test_the_engine_agrees_with_the_fp32_reference(base: Path, tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(contracts(base, 1).spec.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.engine.gradients", "--base", str(base), "--spec", str(spec)]
    command += ["--data", str(ROOT / "examples" / "contracts" / "train.jsonl"), "--samples", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    found = json.loads(done.stdout.splitlines()[-1])
    assert gate.check_step0(**found["step0_loss"]).passed
    assert len(found["cosines"]) > 0
    assert gate.check_gradients(found["cosines"]).passed


def test_the_gpu_script_runs_without_a_gpu_on_a_tiny_base(base: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.engine.gpu", "--tiny", "--tokenizer", str(base)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["tiny"] is True
    assert len(line["losses"]) == 3


def test_the_gate_fails_what_is_not_equal() -> None:
    assert gate.check_step0(1.0005, 1.0).passed
    assert not gate.check_step0(1.002, 1.0).passed
    assert not gate.check_gradients({"a": 0.9999, "b": 0.9989}).passed
    first, second = [1.0, 0.5], [1.2, 0.7]
    assert gate.check_curve([1.1, 0.9], first, second).passed
    assert not gate.check_curve([2.1, 1.6], first, second).passed
    assert not gate.check_heldout([0.9, 0.9], [0.5, 0.6]).passed
    found = gate.verdict([gate.check_step0(1.0, 1.0), gate.check_heldout([0.9], [0.5, 0.6])])
    assert found["passed"] is False


def test_curves_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        gate.check_curve([1.0], [1.0, 2.0], [1.0, 2.0])


def test_operations_are_counted_by_hand() -> None:
    shape = BaseShape(
        layers=1,
        hidden=2,
        intermediate=3,
        heads=1,
        kv_heads=1,
        head_dim=2,
        vocabulary=5,
        tied=True,
        parameters=1,
    )
    spec = TrainSpec(rank=1, target_modules=["q_proj"])
    linear, lora, head, attention = 4 * (4 * 4 + 3 * 6) * 3, 6 * 4 * 3, 4 * 2 * 5 * 2, 12 * 2 * 6
    assert step_flops(shape, spec, [3], 2) == linear + lora + head + attention


def test_a_ratio_is_taken_round_by_round() -> None:
    assert ratio([200.0, 20.0, 300.0], [100.0, 10.0, 100.0]) == 2.0


def test_the_longest_context_is_found_by_doubling_and_halving() -> None:
    assert 23_000 <= longest(lambda tokens: tokens <= 24_000, start=8192, limit=1 << 20) <= 24_000
    assert longest(lambda _: False, start=8192, limit=1 << 20) == 0
    assert longest(lambda _: True, start=8192, limit=1 << 14) == 1 << 14
