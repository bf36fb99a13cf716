"""Attempts from claim to finish, with real child processes and a real server in the platform's place."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_for
from tests.workers.standin import PlatformStandIn
from workers.contract import EvaluateSpec, Refusal, ReportAnswer, ThinkContract, TrainSpec, ValidateSpec
from workers.runtime.folder import JobFolder
from workers.runtime.job import run_job
from workers.runtime.outcome import failure_of
from workers.runtime.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[3]
ROW = b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'


@pytest.fixture
def settings(platform: PlatformStandIn, tmp_path: Path) -> WorkerSettings:
    (tmp_path / "bases").mkdir()
    return WorkerSettings(
        platform.url, "worker-secret", "redis://", tmp_path / "bases", tmp_path / "work", "gpu-1"
    )


def run(settings: WorkerSettings, stopping: threading.Event | None = None) -> None:
    run_job("job-1", settings, stopping or threading.Event())


def endless(platform: PlatformStandIn, **changes: object) -> None:
    """A job that goes on until it is stopped: an evaluation whose endpoint does not answer."""
    spec = EvaluateSpec(
        base_model="base",
        adapter_model="a@0123456789ab",
        endpoint="http://127.0.0.1:9/v1",
        api_key="",
        think=ThinkContract(family="plain"),
        wait_seconds=600,
    )
    platform.claimed("evaluate", spec, {"data": ROW}, **changes)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(folder: Path) -> list[int]:
    """Pids of the child processes that work in `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"workers.runtime.child" in command and str(folder).encode() in command:
            found.append(int(entry.parent.name))
    return [pid for pid in found if is_alive(pid)]


def test_a_validate_job_reports_and_finishes(platform: PlatformStandIn, settings: WorkerSettings) -> None:
    platform.claimed("validate", ValidateSpec(), {"data": ROW * 3 + b"not json\n"})
    run(settings)

    (finish,) = platform.finishes
    assert (finish["token"], finish["failure"], finish["cancelled"]) == ("token-1", None, False)
    assert (finish["result"]["rows"], finish["result"]["valid"]) == (4, 3)
    assert finish["result"]["errors"][0]["row"] == 4
    assert platform.reports[0]["token"] == "token-1"
    assert platform.tokens == {"Bearer worker-secret"}
    assert not (settings.work_dir / "jobs" / "job-1").exists()


def test_no_report_holds_a_word_of_the_data(platform: PlatformStandIn, settings: WorkerSettings) -> None:
    secret = b'{"messages": [{"role": "user", "content": "xyzzy"}, {"role": "assistant", "content": ""}]}\n'
    platform.claimed("validate", ValidateSpec(), {"data": secret})
    run(settings)
    assert "xyzzy" not in json.dumps(platform.reports)


def test_a_refused_claim_ends_quietly(platform: PlatformStandIn, settings: WorkerSettings) -> None:
    platform.claim = lambda job: (409, Refusal(code="not_claimable", message="Somebody else has it."))
    run(settings)
    assert (platform.reports, platform.finishes) == ([], [])
    assert not (settings.work_dir / "jobs").exists()


def test_a_claim_without_an_answer_is_asked_again_as_the_same(
    platform: PlatformStandIn, settings: WorkerSettings
) -> None:
    platform.claimed("validate", ValidateSpec(), {"data": ROW})
    answers = iter([(503, None), platform.claim("job-1")])
    platform.claim = lambda job: next(answers)
    run(settings)
    first, again = platform.claims
    assert first == again and len(first["key"]) >= 24
    assert platform.finishes[0]["result"]["valid"] == 1


def test_a_worker_that_cannot_write_leaves_the_jobs_to_others(
    platform: PlatformStandIn, settings: WorkerSettings
) -> None:
    """Such a worker would be idle again at once, and fail one job after the other."""
    platform.claimed("validate", ValidateSpec(), {"data": ROW})
    settings.work_dir.write_text("a file where the folder should be")
    run(settings)
    assert (platform.tokens, platform.finishes) == (set(), [])
    settings.work_dir.unlink()
    run(settings)
    assert platform.finishes[0]["result"]["valid"] == 1


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO])
def test_a_disk_that_breaks_in_the_middle_is_said_in_words(number: int) -> None:
    failure = failure_of(OSError(number, "said by the system", "/secret/place"))
    assert (failure.fault, failure.code) == ("platform", "disk_unusable")
    assert os.strerror(number) in failure.message and "secret" not in failure.message


def test_a_child_that_is_killed_is_a_platform_failure(
    platform: PlatformStandIn, settings: WorkerSettings
) -> None:
    endless(platform)
    folder = settings.work_dir / "jobs" / "job-1"
    worker = threading.Thread(target=run, args=(settings,))
    worker.start()
    wait_for(lambda: any(report["phase"] == "evaluating" for report in platform.reports))
    os.kill(children(folder)[0], signal.SIGKILL)
    worker.join(20)

    failure = platform.finishes[0]["failure"]
    assert (failure["fault"], failure["code"]) == ("platform", "child_killed")
    assert "signal 9" in failure["message"]
    assert (folder / "job.json").exists(), "another attempt may go on from it"


def test_cancel_stops_the_child_and_says_so(platform: PlatformStandIn, settings: WorkerSettings) -> None:
    endless(platform)
    platform.report = lambda report: (
        200,
        ReportAnswer(action="cancel" if report["phase"] == "evaluating" else "continue"),
    )
    began = time.monotonic()
    run(settings)
    assert [finish["cancelled"] for finish in platform.finishes] == [True]
    assert time.monotonic() - began < 20
    assert children(settings.work_dir / "jobs" / "job-1") == []


def test_a_stale_token_kills_the_child_and_tells_nobody(
    platform: PlatformStandIn, settings: WorkerSettings
) -> None:
    endless(platform)
    stale = Refusal(code="stale_token", message="A newer attempt has the job.")
    platform.report = lambda report: (
        (409, stale) if report["phase"] == "evaluating" else (200, ReportAnswer(action="continue"))
    )
    run(settings)
    assert platform.finishes == []
    assert children(settings.work_dir / "jobs" / "job-1") == []


def test_a_worker_that_cannot_report_stops_its_own_child(
    platform: PlatformStandIn, settings: WorkerSettings
) -> None:
    endless(platform, lease_seconds=8)
    platform.report = lambda report: (
        (503, None) if report["phase"] == "evaluating" else (200, ReportAnswer(action="continue"))
    )
    began = time.monotonic()
    run(settings)
    assert platform.finishes == []
    assert time.monotonic() - began < 20
    assert children(settings.work_dir / "jobs" / "job-1") == []


def test_a_platform_without_room_is_one_that_answers(
    platform: PlatformStandIn, settings: WorkerSettings
) -> None:
    """Its disk is full for longer than a worker is silent; each answer has renewed the lease."""
    endless(platform, lease_seconds=8)
    full_until: list[float] = []

    def answer(report: dict[str, Any]) -> tuple[int, ReportAnswer | None]:
        if report["phase"] != "evaluating":
            return 200, ReportAnswer(action="continue")
        full_until[:] = full_until or [time.monotonic() + 9]
        return (507, None) if time.monotonic() < full_until[0] else (200, ReportAnswer(action="cancel"))

    platform.report = answer
    run(settings)
    assert [finish["cancelled"] for finish in platform.finishes] == [True]


def test_a_worker_that_is_stopped_hands_the_job_back(
    platform: PlatformStandIn, settings: WorkerSettings
) -> None:
    endless(platform)
    stopping = threading.Event()
    worker = threading.Thread(target=run, args=(settings, stopping))
    worker.start()
    wait_for(lambda: any(report["phase"] == "evaluating" for report in platform.reports))
    stopping.set()
    worker.join(25)
    assert platform.finishes[0]["failure"]["code"] == "worker_stopped"
    assert (settings.work_dir / "jobs" / "job-1").exists()


def test_kill_9_of_the_worker_takes_the_child_with_it(
    platform: PlatformStandIn, settings: WorkerSettings
) -> None:
    endless(platform)
    folder = settings.work_dir / "jobs" / "job-1"
    source = (
        "import sys, threading; from pathlib import Path; from workers.runtime.job import run_job;"
        "from workers.runtime.settings import WorkerSettings;"
        "url, bases, work = sys.argv[1:];"
        "run_job('job-1', WorkerSettings(url, 't', '', Path(bases), Path(work), 'w'), threading.Event())"
    )
    command = [sys.executable, "-c", source, platform.url, str(settings.bases_dir), str(settings.work_dir)]
    worker = subprocess.Popen(command, cwd=ROOT)
    try:
        wait_for(lambda: any(report["phase"] == "evaluating" for report in platform.reports))
        (child,) = children(folder)
    finally:
        worker.kill()
        worker.wait()
    wait_for(lambda: not is_alive(child), seconds=5)
    folder_of_the_next_attempt = JobFolder(settings.work_dir, "job-1")
    folder_of_the_next_attempt.acquire(5, lambda: None)
    folder_of_the_next_attempt.release()


def test_a_child_that_says_nothing_is_stopped_in_words(
    platform: PlatformStandIn, settings: WorkerSettings
) -> None:
    endless(platform, hang_seconds=0.01)
    run(settings)
    failure = platform.finishes[0]["failure"]
    assert (failure["fault"], failure["code"]) == ("platform", "no_progress")
    assert "said nothing" in failure["message"]
    assert children(settings.work_dir / "jobs" / "job-1") == []


def test_a_damaged_input_is_not_worked_on(platform: PlatformStandIn, settings: WorkerSettings) -> None:
    platform.claimed("validate", ValidateSpec(), {"data": ROW})
    platform.objects["data"] = ROW.replace(b"q", b"Q")
    run(settings)
    failure = platform.finishes[0]["failure"]
    assert (failure["fault"], failure["code"]) == ("platform", "checksum_mismatch")


def test_a_line_that_keeps_breaking_only_slows_the_download(
    platform: PlatformStandIn, settings: WorkerSettings
) -> None:
    platform.claimed("validate", ValidateSpec(), {"data": ROW * 100})
    platform.cut_downloads_at = 3000
    run(settings)
    assert platform.finishes[0]["result"]["valid"] == 100
    assert platform.downloads == 3


def test_a_result_waits_for_the_store(platform: PlatformStandIn, settings: WorkerSettings) -> None:
    platform.claimed("validate", ValidateSpec(), {"data": ROW})
    statuses = iter([503, 403])
    platform.put_status = lambda name: next(statuses, 200)
    run(settings)
    assert platform.finishes[0]["result"]["valid"] == 1 and list(platform.stored) == ["rows.parquet"]
    assert any("does not take rows.parquet yet" in report["message"] for report in platform.reports)


def test_a_worker_that_waits_for_the_store_can_be_stopped(
    platform: PlatformStandIn, settings: WorkerSettings
) -> None:
    """Its work is done, and stays on its disk for the next attempt."""
    platform.claimed("validate", ValidateSpec(), {"data": ROW})
    stopping = threading.Event()

    def status(_: str) -> int:
        stopping.set()
        return 503

    platform.put_status = status
    run(settings, stopping)
    assert platform.finishes[0]["failure"]["code"] == "worker_stopped"
    assert (settings.work_dir / "jobs" / "job-1" / "out" / "rows.parquet").is_file()


def test_a_job_whose_result_waits_for_the_store_can_be_cancelled(
    platform: PlatformStandIn, settings: WorkerSettings
) -> None:
    platform.claimed("validate", ValidateSpec(), {"data": ROW})

    def status(_: str) -> int:
        platform.report = lambda report: (200, ReportAnswer(action="cancel"))
        return 503

    platform.put_status = status
    run(settings)
    assert platform.finishes[0]["cancelled"]


def test_an_unknown_base_names_the_worker(platform: PlatformStandIn, settings: WorkerSettings) -> None:
    for base in ("no-such-base", "../bases", ""):
        platform.claimed("train", TrainSpec(base=base), {"data": ROW})
        run(settings)
        failure = platform.finishes[-1]["failure"]
        assert (failure["fault"], failure["code"]) == ("platform", "base_not_here")
        assert "gpu-1" in failure["message"]


def test_settings_of_a_newer_platform_are_refused_in_words(
    platform: PlatformStandIn, settings: WorkerSettings
) -> None:
    platform.claimed("validate", {"format": "parquet"}, {"data": ROW})
    run(settings)
    failure = platform.finishes[0]["failure"]
    assert failure["code"] == "bad_spec"
    assert "`format`" in failure["message"]


def test_the_finish_is_repeated_until_the_platform_takes_it(
    platform: PlatformStandIn, settings: WorkerSettings
) -> None:
    platform.claimed("validate", ValidateSpec(), {"data": ROW})
    statuses = iter([503, 502])
    platform.finish = lambda request: next(statuses, 200)
    run(settings)
    assert len(platform.finishes) == 3
    assert platform.finishes[0] == platform.finishes[2]


def test_two_attempts_never_share_a_folder(platform: PlatformStandIn, settings: WorkerSettings) -> None:
    platform.claimed("validate", ValidateSpec(), {"data": ROW})
    with JobFolder(settings.work_dir, "job-1"):
        worker = threading.Thread(target=run, args=(settings,))
        worker.start()
        wait_for(lambda: len(platform.reports) > 3)
        assert platform.finishes == []
    worker.join(20)
    assert platform.finishes[0]["result"]["valid"] == 1
