"""Versions with something wrong in them: refused in words, and kept from the engine."""

import dataclasses
import json
from typing import Any

import pytest

from tests.waiting import wait_for
from tests.workers.serving.adapters import CONFIG, build
from tests.workers.serving.agents import held, running, want
from tests.workers.serving.engine_standin import EngineStandIn
from tests.workers.standin import PlatformStandIn
from workers.serving.settings import AgentSettings

pytestmark = pytest.mark.usefixtures("hurried")
WRONG_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "rank 512": ({"r": 512}, "rank is 512"),
    "DoRA": ({"use_dora": True}, "DoRA"),
    "saved modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "bias": ({"bias": "all"}, "biases"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
    "other layers": ({"target_modules": ["q_proj", "lm_head"]}, "other layers"),
    "no LoRA": ({"peft_type": "IA3"}, "LoRA adapter"),
}


@pytest.mark.parametrize("wrong", WRONG_CONFIGS)
def test_what_the_engine_cannot_apply_never_reaches_it(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str, wrong: str
) -> None:
    change, sentence = WRONG_CONFIGS[wrong]
    want(platform, build(base_digest, config=CONFIG | change))
    with running(settings):
        (failed,) = wait_for(lambda: held(platform, "failed"))
    assert sentence in failed["error"]
    assert engine.loads == []
    assert [path.name for path in settings.adapters_dir.iterdir() if path.is_dir()] == []


def test_an_engine_that_splits_text_otherwise_than_its_base_gets_nothing(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str
) -> None:
    right, engine.tokens = engine.tokens, engine.tokens[:-1]
    want(platform, build(base_digest))
    with running(settings):
        wait_for(lambda: any("tokenizer_config.json" in sync["trouble"] for sync in platform.syncs))
        assert engine.loads == []
        engine.tokens = right
        wait_for(lambda: held(platform, "ready"), 20)
        wait_for(lambda: platform.syncs[-1]["trouble"] == "")


def test_an_engine_whose_base_has_no_tokenizer_gets_nothing(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str
) -> None:
    (settings.bases_dir / "tiny" / "tokenizer.json").unlink()
    want(platform, build(base_digest))
    with running(settings):
        wait_for(lambda: any("Copy the whole base" in sync["trouble"] for sync in platform.syncs))
    assert engine.loads == []


def test_a_base_whose_attention_the_engine_scales_otherwise_gets_nothing(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str
) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "attn_factor": 0.8782488562869419}
    config = settings.bases_dir / "tiny" / "config.json"
    config.write_text(json.dumps({"rope_scaling": scaling}))
    want(platform, build(base_digest))
    with running(settings):
        wait_for(lambda: any('"attention_factor": 1.0' in sync["trouble"] for sync in platform.syncs))
        assert engine.loads == []
        config.write_text(json.dumps({"rope_scaling": scaling | {"attention_factor": 1.0}}))
        wait_for(lambda: held(platform, "ready"))


def test_an_adapter_of_another_base_is_refused(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings
) -> None:
    want(platform, build("f" * 64))
    with running(settings):
        (failed,) = wait_for(lambda: held(platform, "failed"))
    assert "was trained on tiny with digest ffffffffffff" in failed["error"]
    assert engine.loads == []


def test_a_manifest_with_another_digest_is_refused(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str
) -> None:
    built = build(base_digest)
    other = "0" * 64
    want(platform, dataclasses.replace(built, digest=other, name=f"clauses@{other[:12]}"))
    with running(settings):
        (failed,) = wait_for(lambda: held(platform, "failed"))
    assert "does not have the digest" in failed["error"]
    assert engine.loads == []


@pytest.mark.parametrize(
    "name", ["../../etc", "clauses", "a/b@{digest}", "clauses@ffffffffffff", "@{digest}"]
)
def test_a_name_that_is_not_the_immutable_one_is_refused_in_words(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str, name: str
) -> None:
    built, good = build(base_digest, seed=1), build(base_digest, seed=2)
    want(platform, dataclasses.replace(built, name=name.format(digest=built.digest[:12])), good)
    with running(settings):
        wait_for(lambda: held(platform, "ready"))
        (failed,) = held(platform, "failed")
        assert "under a name that is not <adapter>@<first 12 of the digest>" in failed["error"]
        assert failed["name"] == name.format(digest=built.digest[:12])
    assert set(engine.adapters) == {good.name}


def test_one_bad_version_does_not_keep_the_others_waiting(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str
) -> None:
    bad, good = build("f" * 64, seed=1), build(base_digest, seed=2)
    want(platform, bad, good)
    with running(settings):
        wait_for(lambda: held(platform, "ready") and held(platform, "failed"))
