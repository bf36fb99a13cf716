"""Job folders: one attempt at a time, and only our own old ones are removed."""

import os
import time
from pathlib import Path

import pytest

from workers.runtime.folder import FolderBusy, JobFolder, remove_old_folders


def age(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (then, then))


def test_a_folder_is_held_by_one_attempt(tmp_path: Path) -> None:
    with JobFolder(tmp_path, "job"), pytest.raises(FolderBusy):
        JobFolder(tmp_path, "job").acquire(0.3, lambda: None)
    with JobFolder(tmp_path, "job"):
        pass


@pytest.mark.parametrize("name", ["../job", "", ".", "a/b", "-x", "x" * 65])
def test_a_job_id_cannot_leave_the_work_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="job id"):
        JobFolder(tmp_path, name)


def test_only_old_unlocked_folders_of_ours_are_removed(tmp_path: Path) -> None:
    for name in ("old", "young", "busy"):
        with JobFolder(tmp_path, name):
            (tmp_path / "jobs" / name / "out").mkdir()
    somebody_elses = tmp_path / "jobs" / "notes"
    somebody_elses.mkdir()
    for name in ("old", "busy", "notes"):
        age(tmp_path / "jobs" / name, 1000)
    with JobFolder(tmp_path, "busy"):
        age(tmp_path / "jobs" / "busy", 1000)
        assert remove_old_folders(tmp_path, older_than=500) == ["old"]
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == ["busy", "notes", "young"]
