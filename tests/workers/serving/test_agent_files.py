"""The files of an agent's versions: a disk that is full or crowded, bytes that are damaged."""

import dataclasses
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.waiting import wait_for
from tests.workers.serving.adapters import build
from tests.workers.serving.agents import held, running, want
from tests.workers.serving.engine_standin import EngineStandIn
from tests.workers.standin import PlatformStandIn
from workers.contract import PoolWanted, WantedVersion
from workers.serving import plan
from workers.serving.engine import EngineView
from workers.serving.files import AdapterCache, DiskFull
from workers.serving.settings import AgentSettings

pytestmark = pytest.mark.usefixtures("hurried")


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


@contextmanager
def serving_file(content: bytes) -> Iterator[tuple[str, int]]:
    """The address of a file in a store, and its size."""
    store = PlatformStandIn()
    server = store.start()
    yield store.input("file", content).url, len(content)
    server.shutdown()
    server.server_close()


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
