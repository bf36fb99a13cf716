"""An agent with everything around it: the engine it keeps, its settings, a base on the disk."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workers.serving.engine_standin import TOKENIZER, EngineStandIn
from tests.workers.standin import PlatformStandIn
from workers.contract.weights import digest_base
from workers.serving import plan, work
from workers.serving.settings import AgentSettings


@pytest.fixture
def engine() -> Iterator[EngineStandIn]:
    stand_in = EngineStandIn()
    server = stand_in.start()
    yield stand_in
    server.shutdown()
    server.server_close()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine counts as idle sooner, and what failed is tried again sooner."""
    monkeypatch.setattr(plan, "REST_IDLE_SECONDS", 0.1)
    monkeypatch.setattr(work, "FIRST_PAUSE", 0.2)


@pytest.fixture
def settings(platform: PlatformStandIn, engine: EngineStandIn, tmp_path: Path) -> AgentSettings:
    base = tmp_path / "bases" / "tiny"
    base.mkdir(parents=True)
    (base / "model.safetensors").write_bytes(b"the base")
    (base / "config.json").write_text("{}")
    TOKENIZER.save(str(base / "tokenizer.json"))
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
