"""What a worker says about itself while it lives, and when it leaves the doorbells alone."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import wait_for
from tests.workers.standin import PlatformStandIn
from workers.contract import Refusal
from workers.runtime import presence
from workers.runtime.disk import trouble_with
from workers.runtime.presence import Presence, own_token
from workers.runtime.settings import WorkerSettings
from workers.wire.environment import SettingsError


@pytest.fixture
def settings(platform: PlatformStandIn, tmp_path: Path) -> WorkerSettings:
    (tmp_path / "work").mkdir()
    return WorkerSettings(platform.url, "t", "redis://", tmp_path, tmp_path / "work", "gpu-1")


@pytest.fixture
def rests(settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """What a worker that says hello all the time was told: to rest, or to work again."""
    monkeypatch.setattr(presence, "HELLO_SECONDS", 0.05)
    told: list[bool] = []
    lives = Presence(settings, "t", "gpu", told.append, lambda: None)
    lives.start()
    yield told
    lives.stop()


def test_a_worker_whose_disk_breaks_says_so_and_rests_until_it_is_mended(
    platform: PlatformStandIn, settings: WorkerSettings, rests: list[bool]
) -> None:
    wait_for(lambda: platform.hellos)
    assert (platform.hellos[0]["facts"]["trouble"], platform.hellos[0]["facts"]["slots"]) == ("", 1)
    settings.work_dir.rmdir()
    settings.work_dir.write_text("a file where the folder should be")
    wait_for(lambda: rests == [True])
    facts = platform.hellos[-1]["facts"]
    assert facts["slots"] == 0 and "cannot write to its WORK_DIR" in facts["trouble"]
    settings.work_dir.unlink()
    wait_for(lambda: rests == [True, False])
    assert platform.hellos[-1]["facts"]["slots"] == 1


def test_a_worker_that_is_refused_rests(platform: PlatformStandIn, rests: list[bool]) -> None:
    """One of an older contract would take the doorbells from those who may answer them."""
    wait_for(lambda: platform.hellos)
    platform.hello_refusal = Refusal(code="contract_too_old", message="Upgrade the worker.")
    wait_for(lambda: rests == [True])
    platform.hello_refusal = None
    wait_for(lambda: rests == [True, False])


def test_a_worker_that_does_not_hear_its_doorbells_connects_anew(
    platform: PlatformStandIn, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the first word: it may have begun a moment ago. Nor while it rests, and is not to hear any."""
    monkeypatch.setattr(presence, "HELLO_SECONDS", 0.05)
    heard_at: list[int] = []
    platform.unheard = platform.draining = True
    lives = Presence(settings, "t", "gpu", lambda _: None, lambda: heard_at.append(len(platform.hellos)))
    lives.start()
    wait_for(lambda: len(platform.hellos) > 3)
    assert heard_at == []
    platform.draining = False
    wait_for(lambda: len(heard_at) == 2)
    assert heard_at[1] - heard_at[0] >= 2
    platform.unheard = False
    lives.stop()


def test_a_full_disk_is_said_in_words_and_room_helps(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a file system of its own takes the right to mount")
    try:
        assert trouble_with(tmp_path) == ""
        (tmp_path / "filler").write_bytes(bytes(3 * 512 * 1024))
        assert "is full" in trouble_with(tmp_path)
        (tmp_path / "filler").unlink()
        assert trouble_with(tmp_path) == ""
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_no_token_is_used_up_for_a_secret_that_could_not_be_kept(
    platform: PlatformStandIn, tmp_path: Path
) -> None:
    (tmp_path / "work").write_text("a file where the folder should be")
    settings = WorkerSettings(
        platform.url, "", "redis://", tmp_path, tmp_path / "work", "gpu-1", enrol_token="enrol-1"
    )
    with pytest.raises(SettingsError, match="cannot write"):
        own_token(settings)
    assert platform.tokens == set()
