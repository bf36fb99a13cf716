"""No version is ready before the engine has shown that it applies it: what is asked for that, and caught."""

import pytest

from tests.waiting import wait_for
from tests.workers.serving.adapters import build
from tests.workers.serving.agents import held, running, want
from tests.workers.serving.engine_standin import EngineStandIn
from tests.workers.standin import PlatformStandIn
from workers.serving.settings import AgentSettings

pytestmark = pytest.mark.usefixtures("hurried")


def test_a_replica_that_serves_the_base_under_the_adapters_name_is_caught(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str
) -> None:
    engine.applies_adapters = False
    want(platform, build(base_digest))
    with running(settings):
        (failed,) = wait_for(lambda: held(platform, "failed"))
        assert "does not clearly apply the adapter" in failed["error"]
        assert engine.adapters == {}
        assert all(
            not held for held in ([v for v in s["held"] if v["state"] == "ready"] for s in platform.syncs)
        )


def test_what_the_rest_of_the_proof_finds_out_is_unloaded(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str
) -> None:
    engine.lies_about = range(1, 8)
    want(platform, build(base_digest, golden=8))
    with running(settings):
        wait_for(lambda: held(platform, "ready"))
        (failed,) = wait_for(lambda: held(platform, "failed"))
    assert "does not clearly apply the adapter" in failed["error"] and engine.adapters == {}


def test_the_rest_of_a_proof_waits_until_no_app_asks(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str
) -> None:
    built = build(base_digest, golden=8)
    engine.running = {"another@0": 1}
    want(platform, built)
    with running(settings):
        wait_for(lambda: held(platform, "ready"))
        looks = len(platform.syncs)
        wait_for(lambda: len(platform.syncs) > looks + 6)
        assert engine.asked == [(built.name, 1), ("tiny", 1)]
        engine.running = {}
        wait_for(lambda: held(platform, "ready")[0]["proof"]["tokens"] == 24)
    assert {count for _, count in engine.asked} == {1}, "an app that comes meanwhile waits for one question"


def test_a_first_sample_that_settles_nothing_has_the_others_asked(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str
) -> None:
    """The engine gives the base's numbers for the first sample alone: the others outvote it."""
    engine.lies_about = (0,)
    want(platform, build(base_digest, golden=8))
    with running(settings):
        (ready,) = wait_for(lambda: held(platform, "ready"))
    assert ready["proof"]["tokens"] == 24 and ready["proof"]["share"] < 1


def test_without_golden_samples_nothing_is_proven(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str
) -> None:
    want(platform, build(base_digest, golden=0))
    with running(settings):
        (failed,) = wait_for(lambda: held(platform, "failed"))
    assert "no golden samples" in failed["error"]
    assert engine.adapters == {}
