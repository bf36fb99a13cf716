"""Settings fail loudly, in a sentence, without showing a secret."""

from pathlib import Path

import pytest

from workers.runtime.settings import read_settings as read_worker
from workers.serving.settings import read_settings as read_agent
from workers.wire.environment import SettingsError, read


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "bases").mkdir()
    return {
        "STILLHOUSE_URL": "http://127.0.0.1:8000/",
        "WORKER_TOKEN": "worker-secret",
        "AGENT_TOKEN": "agent-secret",
        "BROKER_URL": "redis://:hush@127.0.0.1/0",
        "BASES_DIR": str(tmp_path / "bases"),
        "WORK_DIR": str(tmp_path / "work"),
        "WORKER_NAME": "gpu-1",
        "ENGINE_URL": "http://127.0.0.1:8100",
        "POOL": "demo",
        "REPLICA": "demo-1",
        "ADAPTERS_DIR": str(tmp_path / "adapters"),
    }


def test_worker_and_agent_read_theirs(environ: dict[str, str], tmp_path: Path) -> None:
    worker, agent = read_worker(environ), read_agent(environ)
    assert (worker.url, worker.token, worker.name) == ("http://127.0.0.1:8000", "worker-secret", "gpu-1")
    assert (tmp_path / "work").is_dir()
    assert (agent.advertised_url, agent.max_rank) == ("http://127.0.0.1:8100", 64)
    assert "secret" not in repr(worker) + repr(agent)
    assert "hush" not in repr(worker)


@pytest.mark.parametrize(
    "name", ["STILLHOUSE_URL", "WORKER_TOKEN", "BROKER_URL", "BASES_DIR", "WORK_DIR", "WORKER_NAME"]
)
def test_what_is_missing_is_named(environ: dict[str, str], name: str) -> None:
    del environ[name]
    with pytest.raises(SettingsError, match=f"^{name} is not set"):
        read_worker(environ)


def test_a_secret_may_come_from_a_file(environ: dict[str, str], tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("from-a-file\n", encoding="utf-8")
    del environ["AGENT_TOKEN"]
    assert read_agent(environ | {"AGENT_TOKEN_FILE": str(secret)}).token == "from-a-file"
    with pytest.raises(SettingsError, match="cannot be read"):
        read_agent(environ | {"AGENT_TOKEN_FILE": str(tmp_path / "none")})
    with pytest.raises(SettingsError, match="Both"):
        read({"X": "1", "X_FILE": str(secret)}, "X")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STILLHOUSE_URL", "localhost:8000"),
        ("BASES_DIR", "/no/such/folder"),
        ("MAX_LORA_RANK", "0"),
        ("MAX_LORA_RANK", "lots"),
        ("POOL", "../other"),
    ],
)
def test_what_cannot_be_right_is_refused(environ: dict[str, str], name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        read_agent(environ | {name: value})
