"""The embedded platform's folder: secrets, ports, the lock, and the settings they add up to."""

import os
import socket
import stat
from pathlib import Path

import pytest

from stillhouse.embedded.home import SETTING_NAMES, EmbeddedError, Home, port_is_free, settings_for
from stillhouse.embedded.process import child_environment


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(path=tmp_path / "home", web_port=8000)
    made.create()
    return made


def test_secrets_are_private_and_stay(home: Home) -> None:
    first = home.secrets()
    home.create()
    assert home.secrets() == first
    assert len(set(first.values())) == len(first)
    assert all(len(value) >= 32 for value in first.values())
    assert stat.S_IMODE((home.path / "secrets.json").stat().st_mode) == 0o600


def test_a_port_is_kept_while_it_is_free(home: Home) -> None:
    before = home.ports()
    with socket.create_server(("127.0.0.1", before["postgres"])):
        assert not port_is_free(before["postgres"])
        home.choose_ports()
    after = home.ports()
    assert after["postgres"] != before["postgres"]
    assert {name: port for name, port in after.items() if name != "postgres"} == {
        name: port for name, port in before.items() if name != "postgres"
    }
    assert len(set(after.values())) == len(after)


def test_a_chosen_port_is_nobody_elses_before_its_server_listens(home: Home) -> None:
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", home.ports()["postgres"]))
    assert port_is_free(home.ports()["postgres"])
    with socket.create_server(("127.0.0.1", home.ports()["postgres"])) as server:
        with socket.create_connection(server.getsockname(), timeout=5):
            assert server.accept()
        assert not port_is_free(home.ports()["postgres"])


def test_one_supervisor_per_home(home: Home) -> None:
    with home.lock(), pytest.raises(EmbeddedError, match=f"already running \\(process {os.getpid()}\\)"):
        home.lock()
    home.lock().close()


def test_a_port_that_is_no_port_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("http", "0", "70000", "-1"):
        monkeypatch.setenv("PORT", wrong)
        with pytest.raises(EmbeddedError, match="PORT must be a number"):
            Home.from_environment()


def test_manage_finds_the_embedded_platform_by_itself(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_HOME", str(home.path))
    monkeypatch.delenv("DATABASE_URL", raising=False)
    assert settings_for("publish")["DATABASE_URL"] == home.settings()["DATABASE_URL"]
    monkeypatch.setenv("DATABASE_URL", "postgresql://production/x")
    assert settings_for("publish") == {}


def test_only_up_and_demo_make_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "none"))
    monkeypatch.delenv("DATABASE_URL", raising=False)
    assert settings_for("migrate") == {}
    assert not (tmp_path / "none").exists()
    assert settings_for("up")["STILLHOUSE_URL"] == "http://127.0.0.1:8000"


def test_a_supervised_process_gets_the_settings_it_is_given_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("S3_SECRET_KEY", "secret")
    monkeypatch.setenv("DATABASE_URL_FILE", "/secret")
    environment = child_environment({"WORKER_TOKEN": "token"})
    assert environment["WORKER_TOKEN"] == "token"
    assert not {name for name in environment if name.removesuffix("_FILE") in SETTING_NAMES} - {
        "WORKER_TOKEN"
    }
    assert environment["PATH"] == os.environ["PATH"]
