"""Jobs worked off over HTTP: a run to begin with, the files of its adapter, and what the platform answers."""

from collections.abc import Mapping
from typing import Any

from stillhouse.adapters.models import AdapterVersion
from stillhouse.jobs.models import Job
from stillhouse.training.actions import start_run
from stillhouse.training.models import TrainingRun
from tests.registry import available_base, manifest_of, validation_report
from tests.world import Worker, World, sha256
from workers.contract import ManifestFile, Refusal

REPORT = validation_report(valid=10, with_reasoning=0).model_dump(mode="json")


def refused(response: Any, status: int, code: str) -> str:
    """The sentence of a refusal."""
    assert response.status_code == status, response.content
    refusal = Refusal.model_validate_json(response.content)
    assert refusal.code == code and b"Traceback" not in response.content
    return refusal.message


def state(job: Job) -> str:
    job.refresh_from_db()
    return job.state


def started(world: World) -> TrainingRun:
    """A run on data that a worker has checked."""
    data = world.dataset()
    worker = world.worker(data.job)
    worker.claim()
    worker.post("finish", {"result": REPORT})
    return start_run(
        by=world.expert, adapter_name="clauses", base=available_base(), data=data, preset="quick"
    )


def adapter_files(run: TrainingRun, /, **changes: Any) -> dict[str, bytes]:
    """What a training job uploads, with a manifest that names the files and their digests."""
    files = {"adapter_model.safetensors": f"weights of {run.pk}".encode(), "adapter_config.json": b"{}"}
    named = [ManifestFile(name=name, size=len(body), sha256=sha256(body)) for name, body in files.items()]
    manifest = manifest_of(run).model_copy(update={"files": named, **changes})
    return {**files, "manifest.json": manifest.model_dump_json().encode()}


def finish_with(worker: Worker, files: Mapping[str, bytes], result: Mapping[str, Any]) -> Any:
    return worker.post("finish", {"result": result, "files": worker.send_files(files)})


def trained(world: World) -> AdapterVersion:
    """What a worker has made of such a run."""
    run = started(world)
    worker = world.worker(run.job)
    worker.claim()
    files = adapter_files(run)
    assert finish_with(worker, files, {"manifest_sha256": sha256(files["manifest.json"])}).status_code == 200
    return AdapterVersion.objects.get(run=run)
