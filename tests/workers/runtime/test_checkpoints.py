"""What an attempt finds on its disk: whole, torn by a power cut, or a disk with no room left."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.contract import ClaimAnswer
from workers.runtime.checkpoints import newest_step, restore
from workers.runtime.child import NO_SPACE
from workers.runtime.childjob import ChildJob
from workers.wire.transfer import Patience

CLAIM = ClaimAnswer(
    job="job-1", kind="train", attempt=2, token="t", lease_seconds=60, report_seconds=1, spec={}
)


def write_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / "out" / "checkpoints" / f"step-{step:08d}"
    checkpoint.mkdir(parents=True)
    weights = b"weights of step %d" % step
    (checkpoint / "lora.safetensors").write_bytes(weights)
    files = {"lora.safetensors": hashlib.sha256(weights).hexdigest()}
    (checkpoint / "state.json").write_text(json.dumps({"files": files}))
    return checkpoint


@pytest.mark.parametrize("torn", ["lora.safetensors", "state.json"])
def test_a_torn_checkpoint_on_the_disk_falls_back_to_the_one_before(tmp_path: Path, torn: str) -> None:
    write_checkpoint(tmp_path, 2)
    os.truncate(write_checkpoint(tmp_path, 4) / torn, 5)
    assert restore(CLAIM, tmp_path, Patience())
    assert newest_step(tmp_path / "out") == 2


def test_a_checkpoint_without_its_files_is_none(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path, 3) / "lora.safetensors").unlink()
    assert not restore(CLAIM, tmp_path, Patience())


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a small file system of its own; `fill` leaves nothing of it."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a file system of its own takes the right to mount")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def fill(folder: Path) -> None:
    with pytest.raises(OSError, match="No space"), (folder / "filler").open("wb", buffering=0) as stream:
        while True:
            stream.write(b"x" * 4096)


def test_a_child_with_no_room_even_for_its_failure_says_so_by_its_status(full_disk: Path) -> None:
    data = {"data": "/nowhere"}
    job = ChildJob(
        kind="validate", spec={}, inputs=data, base="", out=str(full_disk), subject="", resume=False
    )
    (full_disk / "job.json").write_text(job.model_dump_json())
    fill(full_disk)
    command = [sys.executable, "-m", "workers.runtime.child", str(full_disk)]
    done = subprocess.run(
        [*command, "--events-fd", "1", "--parent", str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == NO_SPACE
    assert not (full_disk / "failure.json").exists()
