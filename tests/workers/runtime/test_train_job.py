"""Training jobs with the real engine on a tiny base: what is uploaded, and what is gone on from."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.workers.standin import PlatformStandIn
from tests.workers.training.tiny import make_base
from workers.contract import AdapterManifest, ReportAnswer, StoredCheckpoint, TrainSpec
from workers.runtime.job import run_job
from workers.runtime.settings import WorkerSettings

pytestmark = pytest.mark.e2e

SPEC = TrainSpec(
    base="tiny",
    rank=4,
    alpha=8,
    batch_size=4,
    learning_rate=1e-2,
    max_length=256,
    golden_samples=2,
    checkpoint_every=2,
)
DATA = b"".join(
    json.dumps(
        {
            "messages": [
                {"role": "user", "content": f"q{number}"},
                {"role": "assistant", "content": f"a{number}"},
            ]
        }
    ).encode()
    + b"\n"
    for number in range(12)
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    make_base(folder / "tiny")
    return folder


@pytest.fixture
def settings(
    platform: PlatformStandIn, bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> WorkerSettings:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return WorkerSettings(platform.url, "worker-secret", "redis://", bases, tmp_path / "work", "gpu-1")


def test_a_train_job_uploads_the_adapter_and_its_manifest_last(
    platform: PlatformStandIn, settings: WorkerSettings
) -> None:
    platform.claimed("train", SPEC, {"data": DATA})
    statuses = iter([500, 403])
    # A slash: a file of a checkpoint, whose upload has a line of its own.
    platform.put_status = lambda name: 200 if "/" in name else next(statuses, 200)
    run_job("job-1", settings, threading.Event())

    (finish,) = platform.finishes
    assert finish["failure"] is None
    assert list(platform.stored)[-1] == "manifest.json"
    results = {name for name in platform.stored if "/" not in name}
    assert results == {"adapter_model.safetensors", "adapter_config.json", "manifest.json"}
    assert platform.grants == 5, "a fresh grant for every try"
    manifest = AdapterManifest.model_validate_json(platform.stored["manifest.json"])
    assert manifest.run == "run-1"
    assert finish["files"][-1]["sha256"] == finish["result"]["manifest_sha256"]
    points = [point for report in platform.reports for point in report["metrics"]]
    assert [point["step"] for point in points] == [1, 2, 3]
    assert all(point["values"]["loss"] > 0 for point in points)
    assert not (settings.work_dir / "jobs" / "job-1").exists()


def test_another_attempt_goes_on_from_the_checkpoint(
    platform: PlatformStandIn, settings: WorkerSettings
) -> None:
    spec = SPEC.model_copy(update={"epochs": 20.0})
    platform.claimed("train", spec, {"data": DATA})
    stopping = threading.Event()

    def report(report: dict[str, object]) -> tuple[int, ReportAnswer]:
        if report["step"]:
            stopping.set()
        return 200, ReportAnswer(action="continue")

    platform.report = report
    run_job("job-1", settings, stopping)
    assert platform.finishes[0]["failure"]["code"] == "worker_stopped"
    reached = max(report["step"] for report in platform.reports)
    assert any((settings.work_dir / "jobs" / "job-1" / "out" / "checkpoints").iterdir())

    platform.reports.clear()
    platform.claimed("train", spec, {"data": DATA}, attempt=2, token="token-2")
    run_job("job-1", settings, threading.Event())
    steps = [point["step"] for report in platform.reports for point in report["metrics"]]
    assert steps[0] >= reached, "no step done before the checkpoint is done again"
    assert steps[-1] == 60
    assert platform.finishes[-1]["token"] == "token-2"
    assert platform.finishes[-1]["result"]


def stop_after_a_step(platform: PlatformStandIn, settings: WorkerSettings, spec: TrainSpec) -> int:
    """Run the job, stop its worker in the middle, and return the step of the checkpoint that is stored."""
    platform.claimed("train", spec, {"data": DATA}, checkpoint_seconds=0.2)
    stopping = threading.Event()

    def report(report: dict[str, object]) -> tuple[int, ReportAnswer]:
        if report["step"]:
            stopping.set()
        return 200, ReportAnswer(action="continue")

    platform.report = report
    run_job("job-1", settings, stopping)
    return int(platform.checkpoints[-1]["step"])


def stored_checkpoint(platform: PlatformStandIn) -> StoredCheckpoint:
    """The newest checkpoint as the platform gives it to the next attempt."""
    newest = platform.checkpoints[-1]
    files = [
        platform.input(file["name"], platform.stored[f"{newest['step']}/{file['name']}"])
        for file in newest["files"]
    ]
    return StoredCheckpoint(step=newest["step"], files=files)


def steps_of(platform: PlatformStandIn) -> list[int]:
    return [point["step"] for report in platform.reports for point in report["metrics"]]


def test_another_machine_goes_on_from_the_stored_checkpoint(
    platform: PlatformStandIn, settings: WorkerSettings, tmp_path: Path
) -> None:
    """Without any interval in the spec: the runtime asks for the checkpoint."""
    spec = SPEC.model_copy(update={"epochs": 40.0, "checkpoint_every": 0})
    step = stop_after_a_step(platform, settings, spec)
    assert [file["name"] for file in platform.checkpoints[-1]["files"]][-1] == "state.json"
    assert platform.finishes[0]["failure"]["code"] == "worker_stopped"

    elsewhere = replace(settings, work_dir=tmp_path / "elsewhere", name="gpu-2")
    platform.reports.clear()
    platform.report = lambda report: (200, ReportAnswer(action="continue"))
    platform.claimed(
        "train",
        spec,
        {"data": DATA},
        attempt=2,
        token="token-2",
        checkpoint=stored_checkpoint(platform),
    )
    run_job("job-1", elsewhere, threading.Event())
    assert steps_of(platform)[0] == step + 1 and steps_of(platform)[-1] == 120
    assert platform.finishes[-1]["result"]


@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_stored_checkpoint_that_is_not_the_noted_one_is_not_loaded(
    platform: PlatformStandIn, settings: WorkerSettings, how: str
) -> None:
    file = platform.input("state.json", b"{}")
    if how == "changed":
        file = file.model_copy(update={"sha256": "0" * 64})
    else:
        del platform.objects["state.json"]
    platform.claimed("train", SPEC, {"data": DATA}, checkpoint=StoredCheckpoint(step=4, files=[file]))
    run_job("job-1", settings, threading.Event())
    failure = platform.finishes[0]["failure"]
    assert (failure["code"], failure["fault"]) == ("checkpoint_damaged", "platform")


def test_work_that_begins_anew_forgets_what_lies_on_the_disk(
    platform: PlatformStandIn, settings: WorkerSettings
) -> None:
    spec = SPEC.model_copy(update={"epochs": 20.0})
    stop_after_a_step(platform, settings, spec)
    platform.reports.clear()
    platform.report = lambda report: (200, ReportAnswer(action="continue"))
    platform.claimed("train", spec, {"data": DATA}, attempt=2, token="token-2", beginning=2)
    run_job("job-1", settings, threading.Event())
    assert steps_of(platform)[0] == 1 and platform.finishes[-1]["result"]


def test_a_users_mistake_is_theirs_and_leaves_nothing(
    platform: PlatformStandIn, settings: WorkerSettings
) -> None:
    platform.claimed("train", SPEC.model_copy(update={"max_length": 16}), {"data": DATA})
    run_job("job-1", settings, threading.Event())
    failure = platform.finishes[0]["failure"]
    assert failure["fault"] == "user", failure
    assert "Traceback" not in failure["message"]
    assert platform.stored == {}
    assert not (settings.work_dir / "jobs" / "job-1").exists()
