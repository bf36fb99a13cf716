"""Runs of tiny bases: what is learnt, what is written, and that stopping and going on changes nothing."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.workers.training.conftest import SPEC, Run, chat, write_rows
from tests.workers.training.tiny import FAMILIES, make_base
from workers.contract import AdapterManifest, TrainProgress, TrainSpec
from workers.training.base import sha256_of
from workers.training.checkpoint import Progress
from workers.training.engine import check_loss
from workers.training.errors import Cancelled, TrainingError
from workers.training.forward import Decoder
from workers.training.packs import Pack
from workers.training.plan import STEPS_AHEAD
from workers.training.prepare import read_samples
from workers.training.render import Renderer
from workers.training.tokenizer import load_tokenizer


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert all(set(line) == {"step", "loss"} for line in lines)
    return [line["loss"] for line in lines]


def manifest(out: Path) -> AdapterManifest:
    return AdapterManifest.model_validate_json((out / "adapter" / "manifest.json").read_text())


def test_a_run_learns_and_leaves_a_complete_adapter(run: Run, base: Path, data: Path, tmp_path: Path) -> None:
    events: list[TrainProgress] = []
    result = run(eval_data=data, epochs=6, on_event=events.append, run_id="run_1")
    out = tmp_path / "out"
    assert result.steps == 18 == len(losses(out))
    assert result.train_loss < losses(out)[0] - 0.5
    assert result.heldout_loss is not None and result.base_heldout_loss is not None
    assert result.heldout_loss < result.base_heldout_loss - 0.5
    assert result.tokens_per_second > 0 and result.peak_memory_bytes > 50 * 1024**2
    assert [event.step for event in events if event.loss is not None] == list(range(1, 19))
    phases = list(dict.fromkeys(event.phase for event in events))
    assert phases == ["loading", "tokenising", "evaluating", "training", "saving"]
    made = manifest(out)
    assert made.run == "run_1" and made.data_sha256 == sha256_of(data) and made.think.family == "plain"
    assert {file.name: file.sha256 for file in made.files} == {
        name: sha256_of(out / "adapter" / name)
        for name in ("adapter_config.json", "adapter_model.safetensors")
    }
    assert sorted(file.name for file in out.iterdir()) == ["adapter", "losses.jsonl"]


@pytest.mark.parametrize("family", ["plain", "r1_qwen", "qwen3"])
def test_plain_peft_loads_the_adapter_and_says_the_same(family: str, run: Run, tmp_path: Path) -> None:
    """Llama, Qwen2 and Qwen3. Without quantisation, so that the comparison can be strict."""
    from peft import PeftModel  # noqa: PLC0415 - slow to import, so only by whoever needs it

    base = make_base(tmp_path / "base", family)
    run(base=base, think=FAMILIES[family].think, quantization="none", epochs=3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(model, tmp_path / "out" / "adapter").eval()
    for golden in manifest(tmp_path / "out").golden:
        assert logprobs(model, golden.prompt_ids, golden.target_ids) == pytest.approx(
            golden.logprobs, abs=0.05
        )
        with model.disable_adapter():
            alone = logprobs(model, golden.prompt_ids, golden.target_ids)
        assert alone == pytest.approx(golden.base_logprobs, abs=0.05)
        assert sum(abs(a - b) for a, b in zip(golden.logprobs, alone, strict=True)) / len(alone) > 0.3


def logprobs(model: Any, prompt: list[int], target: list[int]) -> list[float]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + target])).logits[0].float().log_softmax(-1)
    return [float(logits[len(prompt) + index - 1, token]) for index, token in enumerate(target)]


def test_nf4_is_trained_after_an_evaluation(run: Run, data: Path, tmp_path: Path) -> None:
    """Stock bitsandbytes stops learning on some CPUs once the model has been evaluated."""
    run(quantization="nf4", eval_data=data, epochs=6)
    with_evaluation = losses(tmp_path / "out")
    run(quantization="nf4", epochs=6)
    assert with_evaluation == losses(tmp_path / "out")


def test_one_batch_of_twelve_equals_twelve_of_one(run: Run, tmp_path: Path) -> None:
    run(quantization="none", batch_size=12, micro_batch_tokens=8192, epochs=3)
    together = losses(tmp_path / "out")
    run(quantization="none", batch_size=12, micro_batch_tokens=16, epochs=3)
    assert losses(tmp_path / "out") == pytest.approx(together, rel=2e-2)
    assert losses(tmp_path / "out")[0] == pytest.approx(together[0], rel=2e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw_8bit"])
def test_resuming_gives_the_same_losses_bit_by_bit(optimizer: str, run: Run, tmp_path: Path) -> None:
    settings = {"epochs": 3, "checkpoint_every": 2, "dropout": 0.1, "optimizer": optimizer}
    run(**settings)
    whole = losses(tmp_path / "out")
    adapter = sha256_of(tmp_path / "out" / "adapter" / "adapter_model.safetensors")

    class Killed(Exception):
        pass

    def die_at_five(event: TrainProgress) -> None:
        if event.step == 5:
            raise Killed

    other = tmp_path / "other"
    with pytest.raises(Killed):
        run(**settings, out=other, on_event=die_at_five)
    assert not (other / "adapter").exists()
    steps: list[int] = []
    run(
        **settings,
        out=other,
        resume=True,
        on_event=lambda event: steps.append(event.step) if event.loss else None,
    )
    assert steps[0] == 5
    assert losses(other) == whole
    assert sha256_of(other / "adapter" / "adapter_model.safetensors") == adapter


def test_resuming_with_other_settings_is_refused(run: Run) -> None:
    run(checkpoint_every=2)
    with pytest.raises(TrainingError, match=r"learning_rate 0.01 -> 0.02") as caught:
        run(checkpoint_every=2, learning_rate=2e-2, resume=True)
    assert caught.value.code == "checkpoint_mismatch"


def test_a_damaged_checkpoint_is_refused(run: Run, tmp_path: Path) -> None:
    run(checkpoint_every=2)
    newest = sorted((tmp_path / "out" / "checkpoints").iterdir())[-1] / "lora.safetensors"
    newest.write_bytes(newest.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(TrainingError) as caught:
        run(checkpoint_every=2, resume=True)
    assert caught.value.code == "checkpoint_damaged"
    assert "lora.safetensors" in caught.value.message


def test_resuming_without_a_checkpoint_starts_from_the_beginning(run: Run, tmp_path: Path) -> None:
    run(resume=True, max_steps=2)
    assert len(losses(tmp_path / "out")) == 2


def test_cancelling_writes_no_adapter_and_a_wish_writes_a_checkpoint(run: Run, tmp_path: Path) -> None:
    wishes = iter(["continue", "checkpoint", "cancel"])
    with pytest.raises(Cancelled):
        run(should_stop=lambda: next(wishes))
    assert [folder.name for folder in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-00000002"]
    assert not (tmp_path / "out" / "adapter").exists()


def test_long_samples_are_left_out_whole_and_reported(run: Run, data: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()] + [chat("Long?", "very " * 60)]
    result = run(data=write_rows(tmp_path / "rows.jsonl", rows))
    assert (result.samples, result.excluded) == (12, 1)
    listed = [json.loads(line) for line in (tmp_path / "out" / "excluded.jsonl").read_text().splitlines()]
    assert [(line["side"], line["row"]) for line in listed] == [("train", 12)]
    with pytest.raises(TrainingError) as caught:
        run(data=write_rows(tmp_path / "more.jsonl", [*rows, rows[-1]]))
    assert caught.value.code == "too_many_excluded"
    assert "256-511: 2" in caught.value.message


def test_held_out_rows_are_not_trained_on(run: Run) -> None:
    result = run(heldout_share=0.4)
    assert result.heldout_loss is not None
    assert 0 < result.samples < 12


def test_a_loss_that_is_not_a_number_stops_the_run(run: Run, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        run(alpha=10**38)
    assert caught.value.code == "not_a_number"
    assert "learning_rate" in caught.value.message
    assert not (tmp_path / "out" / "adapter").exists()


@pytest.mark.parametrize(
    ("tail", "stops"), [([9.5] * 5, True), ([9.5] * 4, False), ([9.5, 9.5, 2, 9.5, 9.5], False)]
)
def test_a_loss_that_stays_far_above_its_start_stops_the_run(tail: list[float], stops: bool) -> None:
    progress = Progress(step=len(tail) + 1, losses=[3.0, *tail])
    with pytest.raises(TrainingError, match="rose from 3") if stops else nullcontext():
        check_loss(progress, grad_norm=1.0)


def test_the_same_seed_gives_the_same_adapter_and_another_does_not(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "out" / "adapter" / "adapter_model.safetensors"
    digests = []
    for seed in (1, 1, 2):
        run(seed=seed, max_steps=2)
        digests.append(sha256_of(file))
    assert digests[0] == digests[1] != digests[2]


def test_answer_only_masks_the_thought(run: Run) -> None:
    traces, answers = (
        run(max_steps=1, batch_size=12),
        run(max_steps=1, batch_size=12, think_policy="answer_only"),
    )
    assert 0 < answers.trained_tokens < traces.trained_tokens


@pytest.mark.parametrize("micro_batch_tokens", [16, 4096])
def test_the_loss_is_the_mean_over_the_trained_tokens_of_the_step(
    micro_batch_tokens: int, run: Run, base: Path, tmp_path: Path
) -> None:
    """Against transformers' own loss, token by token, on answers of very different lengths."""
    rows = [chat("Which?", "a"), chat("Which?", "zz"), chat("Which?", "Not one of them, but all. " * 4)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    run(data=data, quantization="none", batch_size=3, max_steps=1, micro_batch_tokens=micro_batch_tokens)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    samples = read_samples(data, None, SPEC, Renderer(load_tokenizer(base), SPEC.think, "traces")).train
    sums = [-sum(logprobs(model, each.prompt_ids, each.target_ids)) for each in samples]
    expected = sum(sums) / sum(each.trained_tokens for each in samples)
    of_means = sum(total / each.trained_tokens for total, each in zip(sums, samples, strict=True)) / len(
        samples
    )
    assert losses(tmp_path / "out")[0] == pytest.approx(expected, rel=5e-3)
    assert of_means != pytest.approx(expected, rel=2e-2)


def test_a_full_spec_survives_the_manifest(run: Run, tmp_path: Path) -> None:
    run(max_steps=1)
    assert manifest(tmp_path / "out").spec == TrainSpec.model_validate(
        SPEC.model_copy(update={"max_steps": 1})
    )


def test_steps_launched_ahead_are_read_before_a_checkpoint(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, whose figures are read a step late: reports, losses and checkpoints stay the same."""

    def outcome() -> tuple[list[int], list[float], list[tuple[str, str]]]:
        steps: list[int] = []
        run(checkpoint_every=2, on_event=lambda event: steps.append(event.step) if event.loss else None)
        folder = tmp_path / "out" / "checkpoints"
        return (
            steps,
            losses(tmp_path / "out"),
            [(f.parent.name, sha256_of(f)) for f in folder.glob("*/lora*")],
        )

    at_once = outcome()
    monkeypatch.setitem(STEPS_AHEAD, "cpu", 1)
    assert outcome() == at_once


def test_a_wish_is_granted_after_the_steps_on_their_way(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STEPS_AHEAD, "cpu", 1)
    wishes = iter(["checkpoint", "continue", "cancel"])
    with pytest.raises(Cancelled):
        run(should_stop=lambda: next(wishes))
    (kept,) = (tmp_path / "out" / "checkpoints").iterdir()
    state = json.loads((kept / "state.json").read_text())
    assert kept.name == "step-00000002"
    assert state["progress"]["step"] == len(state["progress"]["losses"]) == 2


def test_a_step_that_runs_out_of_memory_is_taken_again_with_a_smaller_plan(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once: the losses are those of a run that never ran out. A second time the run says what would fit."""
    run(max_steps=3)
    expected = losses(tmp_path / "out")
    whole = Decoder.hidden
    failures = iter([True])

    def short_of_memory(self: Decoder, pack: Pack, *, adapter: bool = True) -> torch.Tensor:
        if next(failures, False):
            raise torch.OutOfMemoryError
        return whole(self, pack, adapter=adapter)

    monkeypatch.setattr(Decoder, "hidden", short_of_memory)
    events: list[str] = []
    result = run(max_steps=3, on_event=lambda event: events.append(event.message))
    assert losses(tmp_path / "out") == expected
    assert "selective" in result.memory_plan
    assert [text for text in events if "Out of memory" in text] != []
    failures = iter([True] * 3)
    with pytest.raises(TrainingError, match="Halve micro_batch_tokens") as caught:
        run(max_steps=3)
    assert caught.value.code == "out_of_memory"
