"""The agent between platform and engine: whatever happens, what is loaded comes to equal what is wanted."""

import dataclasses
import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.waiting import wait_for
from tests.workers.serving.adapters import CONFIG, Built, build
from tests.workers.serving.engine_standin import EngineStandIn
from tests.workers.standin import PlatformStandIn
from workers.contract import PoolWanted, WantedVersion
from workers.contract.weights import digest_base
from workers.serving import plan
from workers.serving.agent import Agent
from workers.serving.engine import EngineView
from workers.serving.files import AdapterCache, DiskFull
from workers.serving.health import serve_health
from workers.serving.settings import AgentSettings


@pytest.fixture
def engine() -> Iterator[EngineStandIn]:
    stand_in = EngineStandIn()
    server = stand_in.start()
    yield stand_in
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine counts as idle sooner."""
    monkeypatch.setattr(plan, "REST_IDLE_SECONDS", 0.1)


@pytest.fixture
def settings(platform: PlatformStandIn, engine: EngineStandIn, tmp_path: Path) -> AgentSettings:
    base = tmp_path / "bases" / "tiny"
    base.mkdir(parents=True)
    (base / "model.safetensors").write_bytes(b"the base")
    (tmp_path / "adapters").mkdir()
    return AgentSettings(
        url=platform.url,
        token="agent-secret",
        engine_url=engine.url,
        advertised_url=engine.url,
        pool="demo",
        replica="r1",
        adapters_dir=tmp_path / "adapters",
        bases_dir=tmp_path / "bases",
        max_rank=64,
    )


@pytest.fixture
def base_digest(settings: AgentSettings) -> str:
    return digest_base(settings.bases_dir / "tiny")


@contextmanager
def running(settings: AgentSettings) -> Iterator[Agent]:
    agent = Agent(settings)
    thread = threading.Thread(target=agent.run, daemon=True)
    thread.start()
    try:
        yield agent
        assert thread.is_alive(), "nothing may end the loop"
    finally:
        agent.stop()
        thread.join(10)


def want(platform: PlatformStandIn, *versions: Built, **changes: Any) -> list[WantedVersion]:
    """Have every sync answered with these versions; returns what the answer says of them."""
    wanted = [
        WantedVersion.model_validate(
            {
                "name": built.name,
                "digest": built.digest,
                "files": [
                    platform.wanted(built.digest[:8], name, body) for name, body in built.files.items()
                ],
            }
            | changes
        )
        for built in versions
    ]
    platform.sync = lambda report: (200, PoolWanted(wanted=wanted, poll_seconds=0.2))
    return wanted


@contextmanager
def serving_file(content: bytes) -> Iterator[tuple[str, int]]:
    """The address of a file in a store, and its size."""
    store = PlatformStandIn()
    server = store.start()
    yield store.input("file", content).url, len(content)
    server.shutdown()
    server.server_close()


def held(platform: PlatformStandIn, state: str) -> list[dict[str, Any]]:
    last = platform.syncs[-1]["held"] if platform.syncs else []
    return [version for version in last if version["state"] == state]


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


def test_an_engine_that_restarts_gets_everything_back_without_the_store(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str
) -> None:
    versions = [build(base_digest, seed=seed) for seed in range(3)]
    want(platform, *versions)
    with running(settings):
        wait_for(lambda: [v["proof"]["tokens"] for v in held(platform, "ready")] == [6, 6, 6])
        before = platform.syncs[-1]["incarnation"]
        platform.objects.clear()
        asked = engine.completions
        engine.restart()
        wait_for(lambda: platform.syncs[-1]["incarnation"] != before)
        assert not any(
            v["state"] == "ready" for s in platform.syncs if s["incarnation"] != before for v in s["held"][3:]
        )
        wait_for(lambda: len(held(platform, "ready")) == 3)
        assert engine.completions == asked + 3, "one excerpt each: apps wait"
        assert all(version["proof"]["tokens"] == 6 for version in held(platform, "ready"))
        engine.applies_adapters = False
        engine.restart()
        wait_for(lambda: len(held(platform, "failed")) == 3)
    assert len(engine.loads) == 9
    assert engine.adapters == {}, "an excerpt lets nothing through that a proof would not"


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


def test_a_crowded_disk_lets_files_go_sooner_but_never_from_under_a_request() -> None:
    digest = "ab" * 32
    name = f"clauses@{digest[:12]}"
    for crowded, seconds, requests, busy, gone in [
        (False, 599, 0, set(), False),
        (False, 601, 0, set(), True),
        (True, 14, 0, set(), False),
        (True, 16, 0, set(), True),
        (True, 9999, 1, {name}, False),
        (True, 9999, 1, {"another@000000000000"}, True),
        (True, 9999, None, set(), False),
    ]:
        view = EngineView(healthy=True, requests=requests, busy=frozenset(busy))
        situation = plan.Situation(view, [], {digest}, {}, {}, {digest: 0.0}, crowded, True, float(seconds))
        assert plan.next_action(situation) == (plan.Forget(digest) if gone else None)
    away = dataclasses.replace(situation, engine=EngineView(healthy=False))
    assert plan.next_action(away) is None, "an engine that does not answer may still be running requests"


def test_a_full_disk_is_said_in_words_and_tried_again(
    platform: PlatformStandIn,
    engine: EngineStandIn,
    settings: AgentSettings,
    base_digest: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "FIRST_PAUSE", 0.3)
    built = build(base_digest)
    want(platform, built)
    right = platform.sync
    body = right({})[1]
    assert isinstance(body, PoolWanted)
    version = body.wanted[0]
    huge = [file.model_copy(update={"size": 10**18}) for file in version.files]
    too_large = PoolWanted(wanted=[version.model_copy(update={"files": huge})], poll_seconds=0.2)
    platform.sync = lambda report: (200, too_large)
    with running(settings):
        (failed,) = wait_for(lambda: held(platform, "failed"))
        assert "is full: the version needs 3,000,000,000,000 MB" in failed["error"]
        platform.sync = right
        wait_for(lambda: held(platform, "ready"))


def test_a_disk_that_fills_up_while_files_arrive_is_said_in_words(tmp_path: Path) -> None:
    """The real error of a full device, from the kernel."""
    with pytest.raises(OSError) as caught, Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")
    cache = AdapterCache(tmp_path)

    def fail() -> None:
        raise caught.value

    with serving_file(b"{}") as (url, size):
        digest = hashlib.sha256(b"{}").hexdigest()
        file = {"url": url, "size": size, "sha256": digest}
        names = ["manifest.json", "adapter_config.json", "adapter_model.safetensors"]
        version = WantedVersion.model_validate(
            {
                "name": f"clauses@{'0' * 12}",
                "digest": "0" * 64,
                "files": [{**file, "name": name} for name in names],
            }
        )
        with pytest.raises(DiskFull, match="it filled up while the version was fetched"):
            cache.fetch(version, max_rank=64, check=fail)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_cannot_be_read_are_reported_as_the_agents_trouble(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str
) -> None:
    want(platform, build(base_digest))
    weights = settings.bases_dir / "tiny" / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    with running(settings):
        wait_for(lambda: platform.syncs and "There is no .safetensors file" in platform.syncs[-1]["trouble"])
        assert engine.loads == []
        weights.write_bytes(content)
        wait_for(lambda: held(platform, "ready"))
        wait_for(lambda: platform.syncs[-1]["trouble"] == "")


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


def test_one_flipped_byte_in_the_store_is_refused_and_fetched_again_later(
    platform: PlatformStandIn,
    engine: EngineStandIn,
    settings: AgentSettings,
    base_digest: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "FIRST_PAUSE", 0.5)
    built = build(base_digest)
    want(platform, built)
    key = f"{built.digest[:8]}-adapter_model.safetensors"
    right = platform.objects[key]
    platform.objects[key] = b"W" + right[1:]
    with running(settings):
        (failed,) = wait_for(lambda: held(platform, "failed"))
        assert "changed or damaged" in failed["error"]
        assert engine.loads == []
        platform.objects[key] = right
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


def test_without_golden_samples_nothing_is_proven(
    platform: PlatformStandIn, engine: EngineStandIn, settings: AgentSettings, base_digest: str
) -> None:
    want(platform, build(base_digest, golden=0))
    with running(settings):
        (failed,) = wait_for(lambda: held(platform, "failed"))
    assert "no golden samples" in failed["error"]
    assert engine.adapters == {}


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


def test_files_damaged_on_this_host_are_fetched_again(
    platform: PlatformStandIn,
    engine: EngineStandIn,
    settings: AgentSettings,
    base_digest: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "FIRST_PAUSE", 0.3)
    built = build(base_digest)
    want(platform, built)
    with running(settings):
        wait_for(lambda: held(platform, "ready"))
        (settings.adapters_dir / built.digest / "adapter_model.safetensors").write_bytes(b"rotten")
        engine.restart()
        wait_for(lambda: held(platform, "failed"))
        wait_for(lambda: held(platform, "ready"))
    weights = settings.adapters_dir / built.digest / "adapter_model.safetensors"
    assert weights.read_bytes() == built.files["adapter_model.safetensors"]


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
