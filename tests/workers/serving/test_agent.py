"""The agent between platform and engine: whatever happens, what is loaded comes to equal what is wanted."""

import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.waiting import wait_for
from tests.workers.serving.adapters import build
from tests.workers.serving.agents import held, running, want
from tests.workers.serving.engine_standin import EngineStandIn
from tests.workers.standin import PlatformStandIn
from workers.contract import PoolWanted
from workers.serving import plan
from workers.serving.health import serve_health
from workers.serving.settings import AgentSettings

pytestmark = pytest.mark.usefixtures("hurried")


def test_a_wanted_version_is_fetched_loaded_proven_and_reported(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str
) -> None:
    built = build(base_digest)
    want(platform, built)
    with running(settings):
        (short,) = wait_for(lambda: held(platform, "ready"))
        (ready,) = wait_for(lambda: [v for v in held(platform, "ready") if v["proof"]["tokens"] == 6])

    assert short["proof"]["tokens"] == 3, "apps wait for the first sample only"
    asked = [built.name, "tiny", built.name, built.name, "tiny", "tiny"]
    assert engine.asked == [(model, 1) for model in asked]
    assert (ready["name"], ready["digest"]) == (built.name, built.digest)
    assert ready["proof"]["adapter_distance"] == pytest.approx(0.05)
    assert ready["proof"]["base_distance"] == pytest.approx(2.82, abs=0.01)
    assert ready["proof"]["tokens"] == 6
    assert ready["load_ms"] > 0
    assert engine.adapters == {built.name: str(settings.adapters_dir / built.digest)}
    report = platform.syncs[-1]
    assert (report["replica"], report["healthy"], report["base"]) == ("r1", True, "tiny")
    assert (report["base_digest"], report["engine"]) == (base_digest, "vllm 0.0.1")
    assert platform.tokens == {"Bearer agent-secret"}


def test_the_doorbell_wakes_the_agent_long_before_its_next_poll(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str
) -> None:
    platform.sync = lambda report: (200, PoolWanted(wanted=[], poll_seconds=30))
    with running(settings):
        wait_for(lambda: len(platform.syncs) == 1 and platform.waits)
        want(platform, build(base_digest))
        platform.rings.set()
        wait_for(lambda: held(platform, "ready"))
    assert set(platform.waits) == {"demo"}


def test_an_engine_that_restarts_gets_everything_back_without_the_store(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str
) -> None:
    versions = [build(base_digest, seed=seed) for seed in range(3)]
    want(platform, *versions)
    with running(settings):
        wait_for(lambda: [v["proof"]["tokens"] for v in held(platform, "ready")] == [6, 6, 6])
        before = platform.syncs[-1]["incarnation"]
        platform.objects.clear()
        asked = len(engine.asked)
        engine.restart()
        wait_for(lambda: platform.syncs[-1]["incarnation"] != before)
        assert not any(
            v["state"] == "ready" for s in platform.syncs if s["incarnation"] != before for v in s["held"][3:]
        )
        wait_for(lambda: len(held(platform, "ready")) == 3)
        first = sorted(model for model, _ in engine.asked[asked : asked + 3])
        assert first == sorted(version.name for version in versions), "one excerpt each: apps wait"
        assert all(version["proof"]["tokens"] == 6 for version in held(platform, "ready"))
        engine.applies_adapters = False
        engine.restart()
        wait_for(lambda: len(held(platform, "failed")) == 3)
    assert len(engine.loads) == 9
    assert engine.adapters == {}, "an excerpt lets nothing through that a proof would not"


def test_several_are_loaded_at_a_time_and_the_published_ones_first(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str
) -> None:
    versions = [build(base_digest, seed=seed) for seed in range(5)]
    wanted = want(platform, *versions)
    with running(settings):
        wait_for(lambda: [v["proof"]["tokens"] for v in held(platform, "ready")] == [6] * 5)
        published = [one.model_copy(update={"required": one.name == versions[4].name}) for one in wanted]
        platform.sync = lambda report: (200, PoolWanted(wanted=published, poll_seconds=0.2))
        before, heard = platform.syncs[-1]["incarnation"], len(platform.syncs)
        wait_for(lambda: len(platform.syncs) > heard + 1)
        engine.loads.clear()
        engine.most_at_once, engine.pause = 0, 0.2
        engine.restart()
        wait_for(lambda: platform.syncs[-1]["incarnation"] != before and len(held(platform, "ready")) == 5)
    assert versions[4].digest in {Path(folder).name for folder in engine.loads[:4]}, "it was wanted last"
    assert engine.most_at_once == 4


def test_an_engine_that_is_away_holds_nothing_ready(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str
) -> None:
    want(platform, build(base_digest))
    with running(settings):
        wait_for(lambda: held(platform, "ready"))
        engine.healthy = False
        wait_for(lambda: not platform.syncs[-1]["healthy"] and held(platform, "loading"))
        engine.healthy = True
        wait_for(lambda: held(platform, "ready"))
    assert len(engine.loads) == 1, "the same incarnation still holds it"


def test_an_agent_that_restarts_adopts_and_proves_again_before_its_first_report(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str
) -> None:
    want(platform, build(base_digest))
    with running(settings):
        wait_for(lambda: held(platform, "ready"))
    platform.syncs.clear()
    proofs = engine.completions
    with running(settings):
        wait_for(lambda: platform.syncs)
    assert [version["state"] for version in platform.syncs[0]["held"]] == ["ready"]
    assert engine.completions > proofs
    assert len(engine.loads) == 1


def test_an_unwanted_version_is_unloaded_and_its_files_stay_for_a_while(
    platform: PlatformStandIn,
    engine: EngineStandIn,
    settings: AgentSettings,
    base_digest: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = build(base_digest, seed=1), build(base_digest, seed=2)
    want(platform, old)
    with running(settings):
        wait_for(lambda: held(platform, "ready"))
        want(platform, new)
        wait_for(lambda: set(engine.adapters) == {new.name})
        assert engine.unloads == [old.name]
        wait_for(lambda: [version["name"] for version in held(platform, "ready")] == [new.name])
        assert (settings.adapters_dir / old.digest).is_dir()
        engine.running[old.name] = 1
        monkeypatch.setattr(plan, "FILES_KEPT_SECONDS", 0.5)
        looks = len(platform.syncs)
        wait_for(lambda: len(platform.syncs) > looks + 6)
        assert (settings.adapters_dir / old.digest).is_dir(), "a request that began before may read them"
        engine.running = {new.name: 1}
        wait_for(lambda: not (settings.adapters_dir / old.digest).exists())
    assert (settings.adapters_dir / new.digest).is_dir()


def test_a_version_is_unloaded_only_after_every_gateway_has_heard_of_it(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str
) -> None:
    old, new = build(base_digest, seed=1), build(base_digest, seed=2)
    want(platform, old)
    with running(settings):
        wait_for(lambda: held(platform, "ready"))
        want(platform, new)
        wait_for(lambda: new.name in engine.adapters)
        assert old.name in engine.adapters
        began = time.monotonic()
        want(platform, new, old)
        wait_for(lambda: len(held(platform, "ready")) == 2)
        wait_for(lambda: time.monotonic() > began + plan.UNLOAD_AFTER_SECONDS + 1)
    assert engine.unloads == [], "wanted again in time"


def test_probes_hear_why_a_replica_is_not_ready_and_hooks_drain_it(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str
) -> None:
    def ask(method: str, path: str) -> tuple[int, str]:
        answer = httpx.request(method, f"{url}{path}", timeout=30)
        return answer.status_code, answer.text.strip()

    good, bad = build(base_digest, seed=1), build("f" * 64, seed=2)
    engine.healthy = False
    want(platform, good, required=True)
    with running(settings) as agent:
        server = serve_health(agent, 0)
        url = f"http://127.0.0.1:{server.server_port}"
        assert ask("GET", "/ready") == (503, "the engine does not answer")
        engine.healthy = True
        wait_for(lambda: ask("GET", "/ready") == (200, "ready"))
        want(platform, good, bad, required=True)
        wait_for(lambda: ask("GET", "/ready") == (503, "1 of 2 published versions are not ready"))
        want(platform, good, required=True)
        wait_for(lambda: ask("GET", "/ready")[0] == 200)
        assert ask("GET", "/drain")[0] == 503 and ask("POST", "/ready")[0] == 404
        engine.running = {good.name: 1}
        wait_for(lambda: agent._view.requests == 1)
        drained: list[tuple[int, str]] = []
        hook = threading.Thread(target=lambda: drained.append(ask("POST", "/drain")))
        hook.start()
        wait_for(lambda: platform.syncs[-1]["leaving"])
        assert ask("GET", "/ready") == (503, "it is about to stop")
        assert hook.is_alive() and engine.unloads == []
        engine.running = {}
        hook.join(15)
        assert drained == [(200, "drained")]
        server.shutdown()
        server.server_close()


def test_nothing_is_unloaded_before_the_platform_has_been_heard(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str
) -> None:
    want(platform, build(base_digest))
    with running(settings):
        wait_for(lambda: held(platform, "ready"))
    platform.sync = lambda report: (503, None)
    platform.syncs.clear()
    with running(settings):
        wait_for(lambda: len(platform.syncs) > 1)
    assert engine.unloads == []
    assert held(platform, "ready")


def test_an_engine_that_does_not_tell_its_start_is_still_seen_to_restart(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str
) -> None:
    engine.tells_start = False
    want(platform, build(base_digest))
    with running(settings):
        wait_for(lambda: held(platform, "ready"))
        engine.restart()
        wait_for(lambda: len(engine.loads) == 2)
        wait_for(lambda: held(platform, "ready"))
