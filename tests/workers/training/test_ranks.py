"""A run on two processes is the run of one; and what becomes of it when one of them dies."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.waiting import wait_for
from tests.workers.training.conftest import Run
from tests.workers.training.test_engine import logprobs, losses, manifest
from workers.contract import TrainProgress
from workers.training.errors import TrainingError
from workers.training.ranks import Ranks

TWO = {"devices": 2, "quantization": "none", "batch_size": 12, "micro_batch_tokens": 256}


def others(parent: int = 0) -> list[int]:
    """Process ids of the ranks that `parent` (this process) started and that still live."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, its_parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            is_rank = b"workers.training.ranks" in (folder / "cmdline").read_bytes()
            if is_rank and state != "Z" and int(its_parent) == (parent or os.getpid()):
                found.append(int(folder.name))
    return found


def test_two_ranks_give_the_run_of_one_and_plain_peft_loads_it(
    run: Run, base: Path, data: Path, tmp_path: Path
) -> None:
    from peft import PeftModel  # noqa: PLC0415 - slow to import, so only by whoever needs it

    seen: list[int] = []
    run(**TWO | {"devices": 1}, epochs=4, out=tmp_path / "alone")
    result = run(**TWO, epochs=4, eval_data=data, on_event=lambda event: seen.append(len(others())))
    alone, both = losses(tmp_path / "alone"), losses(tmp_path / "out")
    assert max(seen) == 1
    assert both[0] == pytest.approx(alone[0], rel=1e-5)
    assert both == pytest.approx(alone, rel=1e-4)
    assert both[-1] < both[0] - 0.5
    assert result.trained_tokens == manifest(tmp_path / "alone").result.trained_tokens
    assert others() == []
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(model, tmp_path / "out" / "adapter").eval()
    for golden in manifest(tmp_path / "out").golden:
        found = logprobs(model, golden.prompt_ids, golden.target_ids)
        assert found == pytest.approx(golden.logprobs, abs=0.05)


@pytest.mark.e2e
@pytest.mark.e2e
def test_two_ranks_go_on_from_a_checkpoint_bit_by_bit_after_one_was_killed(run: Run, tmp_path: Path) -> None:
    """With dropout, whose numbers are each rank's own."""
    settings = TWO | {"epochs": 6, "checkpoint_every": 2, "dropout": 0.1}
    run(**settings)
    whole = losses(tmp_path / "out")
    other = tmp_path / "other"
    killed: list[int] = []

    def kill_at_five(event: TrainProgress) -> None:
        if event.step == 5 and not killed:
            killed.extend(others())
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(TrainingError, match="Process 2 of 2 ended by SIGKILL") as caught:
        run(**settings, out=other, on_event=kill_at_five)
    assert caught.value.code == "rank_lost"
    assert len(killed) == 1 and others() == []
    assert not (other / "adapter").exists()
    run(**settings, out=other, resume=True)
    assert losses(other) == whole
    assert not (other / "ranks").exists(), "where they met is cleared away"


@pytest.mark.e2e
@pytest.mark.e2e
def test_the_other_rank_dies_with_the_first(base: Path, data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "workers", "train", "--base", str(base), "--data", str(data)]
    command += ["--out", str(tmp_path / "out"), "--set", "devices=2", "--set", "epochs=100"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert first.stderr is not None
        assert any(line.startswith("step 3/") for line in first.stderr)
        (other,) = others(first.pid)
    finally:
        first.kill()
        first.wait()
        if first.stderr is not None:
            first.stderr.close()
    wait_for(lambda: not Path(f"/proc/{other}").exists())


def test_a_refusal_leaves_no_rank_behind(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(TrainingError) as caught:
        run(**TWO, data=tmp_path / "empty.jsonl")
    assert caught.value.code != "rank_lost"
    assert others() == []


@pytest.mark.parametrize("packs", [0, 1, 2, 5])
def test_every_pack_is_computed_by_one_rank(packs: int) -> None:
    step = [[index] for index in range(packs)]
    shares = [Ranks(rank=rank, world=3).share(step) for rank in range(3)]
    assert sorted(pack for share in shares for pack in share) == step
