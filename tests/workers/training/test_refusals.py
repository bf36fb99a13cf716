"""What is refused before anything is loaded, and the sentence that says why."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workers.training.conftest import Run, chat, write_rows
from tests.workers.training.tiny import change, make_base
from workers.contract.limits import why_not_learning_rate
from workers.training.base import base_facts, open_base
from workers.training.errors import TrainingError
from workers.training.settings import spec_for


def refused(call: Callable[[], object]) -> TrainingError:
    with pytest.raises(TrainingError) as caught:
        call()
    assert caught.value.message.endswith(".")
    return caught.value


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_base_that_asks_for_its_own_code(copy: Path, run: Run, name: str) -> None:
    change(copy / name, auto_map={"AutoModel": "evil.Model"})
    assert refused(lambda: run(base=copy)).code == "remote_code"


def test_a_base_with_python_files(copy: Path, run: Run, tmp_path: Path) -> None:
    (copy / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert refused(lambda: run(base=copy)).code == "remote_code"
    assert not (tmp_path / "ran").exists()


def test_a_base_without_safetensors(copy: Path, run: Run) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert refused(lambda: run(base=copy)).code == "no_safetensors"


def test_a_base_whose_weights_are_cut(copy: Path, run: Run) -> None:
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:20])
    assert refused(lambda: run(base=copy)).code == "damaged_base"


def test_a_base_whose_attention_nothing_scales_as_it_says(copy: Path, run: Run) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "attn_factor": 0.8782488562869419}
    change(copy / "config.json", rope_parameters=scaling)
    assert refused(lambda: run(base=copy)).code == "unread_attention_factor"


def test_a_base_without_a_template(copy: Path, run: Run) -> None:
    (copy / "chat_template.jinja").unlink()
    assert refused(lambda: run(base=copy)).code == "no_template"


def test_a_base_of_another_architecture(copy: Path, run: Run) -> None:
    change(copy / "config.json", architectures=["MambaForCausalLM"])
    assert refused(lambda: run(base=copy)).code == "unsupported_architecture"


def test_a_base_that_is_quantised_already(copy: Path, run: Run) -> None:
    change(copy / "config.json", quantization_config={"quant_method": "awq"})
    assert refused(lambda: run(base=copy)).code == "quantized_base"


def test_a_base_that_is_not_there(run: Run, tmp_path: Path) -> None:
    assert refused(lambda: run(base=tmp_path / "nowhere")).code == "no_base"


def test_settings_that_could_not_be_served(run: Run, tmp_path: Path) -> None:
    assert refused(lambda: run(rank=65)).code == "rank_too_large"
    missing = refused(lambda: run(target_modules=["q_proj", "c_attn"]))
    assert missing.code == "unknown_target" and "c_attn" in missing.message and "q_proj" in missing.message
    assert refused(lambda: run(target_modules=["embed_tokens"])).code == "unservable_target"
    assert refused(lambda: run(max_length=513)).code == "context_too_long"
    assert refused(lambda: run(learning_rate=1e-7)).code == "learning_rate_out_of_range"
    assert not (tmp_path / "out").exists()


def test_a_base_or_template_or_data_that_is_not_the_one_named(run: Run) -> None:
    zero = "0" * 64
    assert refused(lambda: run(base_digest=zero)).code == "base_digest_mismatch"
    assert refused(lambda: run(template_sha256=zero)).code == "template_sha256_mismatch"
    assert refused(lambda: run(data_sha256=zero)).code == "data_mismatch"


def test_the_right_digests_are_accepted(run: Run, base: Path) -> None:
    facts = base_facts(open_base(base))
    assert run(base_digest=facts["digest"], template_sha256=facts["template_sha256"], max_steps=1).steps == 1


def test_data_that_cannot_be_trained_on(run: Run, data: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    bad = refused(lambda: run(data=write_rows(tmp_path / "bad.jsonl", [*rows, {"messages": []}])))
    assert bad.code == "bad_row" and "Row 13" in bad.message
    assert refused(lambda: run(data=write_rows(tmp_path / "empty.jsonl", []))).code == "nothing_trainable"
    assert refused(lambda: run(data=tmp_path / "missing.jsonl")).code == "no_data"


def test_a_refused_run_leaves_the_adapter_of_an_earlier_one(run: Run, tmp_path: Path) -> None:
    run(max_steps=1)
    refused(lambda: run(rank=65))
    assert (tmp_path / "out" / "adapter" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("rnak=4", "no setting rnak"),
        ("lora_alpha=4", "here it is called alpha"),
        ("rank=many", "rank is 'many'"),
        ("rank=0", "rank is '0'"),
        ("learning_rate=nan", "learning_rate"),
        ("learning_rate=1", "learning_rate"),
        ("think_policy=loud", "think_policy"),
        ("rank", "no value"),
        ("think={", "not JSON"),
    ],
)
def test_settings_that_do_not_fit(assignment: str, said: str, base: Path) -> None:
    error = refused(lambda: spec_for(base, None, [assignment]))
    assert error.code == "bad_setting"
    assert said in error.message


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("use_dora", True, "magnitude"),
        ("bias", "lora_only", "biases"),
        ("modules_to_save", ["lm_head"], "every other adapter"),
        ("init_lora_weights", "pissa_niter_16", "changing the base's weights"),
        ("init_lora_weights", False, "changing the base's weights"),
    ],
)
def test_what_peft_can_train_and_the_engine_cannot_serve(
    name: str, value: object, said: str, base: Path, tmp_path: Path
) -> None:
    file = tmp_path / "spec.json"
    file.write_text(json.dumps({"rank": 4, name: value}))
    error = refused(lambda: spec_for(base, file, []))
    assert error.code == "unservable_setting"
    assert name in error.message and said in error.message
    assert refused(lambda: spec_for(base, None, [f"{name}={value}"])).code == "unservable_setting"


def test_defaults_of_peft_are_no_reason_to_refuse(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "spec.json"
    defaults = {"use_dora": False, "bias": "none", "modules_to_save": None, "init_lora_weights": True}
    file.write_text(json.dumps({"rank": 4, **defaults}))
    assert spec_for(base, file, []) == spec_for(base, None, ["rank=4"])
    assert spec_for(base, None, ["rank=4", "use_dora=false"]).rank == 4


@pytest.mark.parametrize(
    ("parameters", "fits", "too_low", "too_high"),
    [(134_515_008, 1e-3, 1e-7, 1e-2), (8_030_261_248, 2e-4, 1e-7, 2e-3), (70_553_706_496, 1e-4, 1e-8, 1e-3)],
)
def test_a_learning_rate_outside_the_bases_range(
    parameters: int, fits: float, too_low: float, too_high: float
) -> None:
    assert why_not_learning_rate(fits, parameters) is None
    assert "next to nothing" in str(why_not_learning_rate(too_low, parameters))
    assert "forget" in str(why_not_learning_rate(too_high, parameters))


def test_settings_come_from_a_file_and_are_changed_one_by_one(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "spec.json"
    file.write_text('{"rank": 8, "seed": 3}')
    spec = spec_for(base, file, ["seed=4", "target_modules=q_proj, v_proj", "epochs=0.5"])
    assert (spec.rank, spec.seed, spec.target_modules, spec.epochs) == (8, 4, ["q_proj", "v_proj"], 0.5)
    file.write_text("[]")
    assert refused(lambda: spec_for(base, file, [])).code == "bad_spec_file"
    assert refused(lambda: spec_for(base, tmp_path / "none.json", [])).code == "bad_spec_file"


def test_without_a_think_contract_the_template_decides(tmp_path: Path) -> None:
    assert spec_for(make_base(tmp_path / "r1", "r1_llama", layers=1), None, []).think.family == "r1_llama"


def test_long_answers_alone_are_refused_too(run: Run, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "long.jsonl", [chat("Long?", "very " * 60)])
    assert refused(lambda: run(data=data, max_excluded_share=1.0)).code == "too_many_excluded"
