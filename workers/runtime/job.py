"""One attempt of one job, from claim to finish."""

import logging
import threading
import time
from pathlib import Path

import httpx
from pydantic import ValidationError

from workers.contract import (
    AdapterManifest,
    ClaimAnswer,
    CompareSpec,
    CountSpec,
    DeriveSpec,
    EvaluateSpec,
    FinishRequest,
    JobFailure,
    Message,
    OutputFile,
    PreviewSpec,
    TrainSpec,
    ValidateSpec,
)
from workers.runtime.checkpoints import CheckpointKeeper, restore
from workers.runtime.child import CANCELLED, NO_SPACE
from workers.runtime.childjob import ChildJob, ChildResult
from workers.runtime.client import WorkerClient
from workers.runtime.disk import trouble_with
from workers.runtime.events import Tracker
from workers.runtime.folder import FolderBusy, JobFolder
from workers.runtime.outcome import DISK_FULL, JobCancelled, JobFailed, JobLost, failure_of
from workers.runtime.process import Child
from workers.runtime.reporter import Reporter
from workers.runtime.settings import WorkerSettings
from workers.wire.api import Refused, Unreachable, growing_pauses
from workers.wire.transfer import Patience, TransferError, download, make_client, pause, sha256_of, upload

log = logging.getLogger(__name__)

SPECS: dict[str, type[Message]] = {
    "validate": ValidateSpec,
    "train": TrainSpec,
    "evaluate": EvaluateSpec,
    "count": CountSpec,
    "derive": DeriveSpec,
    "compare": CompareSpec,
    "preview": PreviewSpec,
}
WITH_BASE = (TrainSpec, CountSpec, PreviewSpec)
"""Jobs that need a base's files."""
FOLDER_PATIENCE = 60.0
"""Seconds to wait for an older attempt of the same job on this host to be gone."""
CANCEL_GRACE = 10.0
"""Seconds a cancelled trainer has to keep its last checkpoint."""
STOP_GRACE = 10.0
"""Seconds a trainer has to write a checkpoint when the worker is being stopped."""
STORE_GRACE = 5.0
"""Seconds that the last checkpoint has to reach the store before the job is handed back."""
FINISH_PATIENCE = 600.0
"""Seconds to keep trying to deliver an outcome. A stale token ends it sooner, so a long wait does no harm."""
LAST_WORD = 5.0
"""The same when the worker is being stopped: the platform notices the rest by the lease."""
STORE_PATIENCE = 600.0
"""Seconds to wait for an object store that is away: work of hours is worth more than a worker's minutes."""
LISTEN = 0.2


def run_job(job: str, settings: WorkerSettings, stopping: threading.Event) -> None:
    """Claim `job` and see it through. Returns quietly when the job is not ours to run.

    `stopping` is set when the worker is asked to stop: the trainer then checkpoints and the job goes back.
    """
    if trouble := trouble_with(settings.work_dir):
        log.error("job %s: not claimed: %s", job, trouble)
        return
    client = WorkerClient(settings.url, settings.token)
    try:
        claim = client.claim(job, settings.name)
    except Refused as refused:
        expected = refused.code in ("not_claimable", "unknown_job")  # rung twice, or cancelled meanwhile
        log.log(logging.INFO if expected else logging.ERROR, "job %s: not claimed: %s", job, refused)
    except Unreachable as error:
        log.warning("job %s: not claimed, the platform will ring again: %s", job, error)
    else:
        log.info("job %s: attempt %d of a %s job begins", job, claim.attempt, claim.kind)
        Attempt(client, claim, settings, stopping).run()
    finally:
        client.close()


class Attempt:
    """What the steps of one attempt share."""

    def __init__(
        self, client: WorkerClient, claim: ClaimAnswer, settings: WorkerSettings, stopping: threading.Event
    ) -> None:
        self.client, self.claim, self.settings, self.stopping = client, claim, settings, stopping
        self.tracker = Tracker(claim.token)
        self.folder = JobFolder(settings.work_dir, claim.job)
        self.digests: dict[str, str] = {}
        """Of the inputs, by name, as they arrived."""
        self.checkpoint_only_here = False
        """The newest checkpoint could not be stored: the folder is kept for another attempt here."""

    def run(self) -> None:
        with Reporter(self.client, self.claim, self.tracker) as reporter:
            try:
                request = self._outcome(reporter)
                if request is not None:
                    reporter.flush()
                    self._finish(request)
            finally:
                self.folder.release()

    def _outcome(self, reporter: Reporter) -> FinishRequest | None:
        """The whole work; how it ended, or None when the job is not ours any more."""
        token, job = self.claim.token, self.claim.job
        try:
            return self._work(reporter)
        except (JobLost, Refused, Unreachable) as lost:
            log.warning("job %s: stopped, not ours any more: %s", job, lost)
            return None
        except JobCancelled:
            return FinishRequest(token=token, cancelled=True)
        except Exception as error:
            if not isinstance(error, JobFailed | TransferError):
                log.exception("job %s: attempt %d failed", job, self.claim.attempt)
            return FinishRequest(token=token, failure=failure_of(error))

    def _work(self, reporter: Reporter) -> FinishRequest:
        spec = self._read_spec()
        self._take_folder(reporter)
        job = self._prepare(spec, reporter)
        self._run_child(reporter)
        result, files = self._outputs(job)
        self._upload(files, Path(job.out), reporter)
        return FinishRequest(token=self.claim.token, result=result, files=files)

    def _read_spec(self) -> Message:
        try:
            return SPECS[self.claim.kind].model_validate(self.claim.spec)
        except ValidationError as error:
            field = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise JobFailed(
                "bad_spec",
                f"This worker cannot read the job's settings (at `{field}`). Is it as new as the platform?",
            ) from None

    def _take_folder(self, reporter: Reporter) -> None:
        try:
            self.folder.acquire(FOLDER_PATIENCE, reporter.check)
        except FolderBusy:
            raise JobFailed("folder_busy", "An earlier attempt still runs on the same worker host.") from None

    def _prepare(self, spec: Message, reporter: Reporter) -> ChildJob:
        """Inputs on disk and job.json written."""
        folder, claim = self.folder.path, self.claim
        out = folder / "out"
        if claim.checkpoint is not None:
            self.tracker.phase("downloading", f"Fetching the checkpoint at step {claim.checkpoint.step}.")
        resume = restore(claim, folder, self._patience("the checkpoint", reporter))
        job = ChildJob(
            kind=claim.kind,
            spec=claim.spec,
            inputs={file.name: str(folder / f"input-{file.name}") for file in claim.inputs},
            base=str(self._base_folder(spec.base)) if isinstance(spec, WITH_BASE) else "",
            out=str(out),
            subject=claim.subject,
            resume=resume,
        )
        self._download(job, reporter)
        for leftover in ("result.json", "failure.json"):
            (folder / leftover).unlink(missing_ok=True)
        (folder / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
        return job

    def _base_folder(self, base: str) -> Path:
        folder = self.settings.bases_dir / base
        if not base or "/" in base or base.startswith(".") or not (folder / "config.json").is_file():
            raise JobFailed(
                "base_not_here",
                f"The base {base!r} is not on worker {self.settings.name}; add it to its BASES_DIR.",
            )
        return folder

    def _download(self, job: ChildJob, reporter: Reporter) -> None:
        with make_client() as client:
            for file in self.claim.inputs:
                self.tracker.phase("downloading", f"Fetching {file.name} ({file.size:,} bytes).")
                target = Path(job.inputs[file.name])
                self.digests[file.name] = download(
                    client,
                    file.url,
                    target,
                    size=file.size,
                    sha256=file.sha256,
                    patience=self._patience(file.name, reporter),
                )

    def _patience(self, what: str, reporter: Reporter) -> Patience:
        def waiting() -> None:
            self.tracker.phase("downloading", f"The object store does not give {what} yet; trying again.")

        return Patience(STORE_PATIENCE, lambda: self._check(reporter), waiting)

    def _check(self, reporter: Reporter) -> None:
        """While there is nothing to keep yet: raise if the job is not ours any more, or this worker stops."""
        reporter.check()
        if self.stopping.is_set():
            raise _stopped()

    def _run_child(self, reporter: Reporter) -> None:
        """Run the child to its end and pass on what it says and what the platform answers."""
        with (
            Child(self.folder.path, self.folder.lock) as child,
            CheckpointKeeper(self.client, self.claim, self.folder.path) as checkpoints,
        ):
            log.info("job %s: child process %d", self.claim.job, child.pid)
            try:
                self._watch(child, checkpoints, reporter)
            except JobCancelled:
                self.tracker.phase("cancelling", "Stopping the work and keeping the last checkpoint.")
                child.tell("cancel")
                child.wait(CANCEL_GRACE)
                self.checkpoint_only_here = not checkpoints.flush(STORE_GRACE)
                raise
            self._listen(child)
            status = child.kill()
        self._judge(status)

    def _watch(self, child: Child, checkpoints: CheckpointKeeper, reporter: Reporter) -> None:
        """Until the child has ended. Raises for every reason to end it earlier."""
        heard = time.monotonic()
        while not child.has_ended():
            if self._listen(child):
                heard = time.monotonic()
            reporter.check()
            if checkpoints.wanted(self.tracker.training, reporter.take_checkpoint_wish()):
                child.tell("checkpoint")
            if self.stopping.is_set():
                self._hand_back(child, checkpoints)
            if time.monotonic() - heard > self.claim.hang_seconds:
                raise JobFailed(
                    "no_progress",
                    f"The {self.claim.kind} process said nothing for {self.claim.hang_seconds:.0f} s after "
                    f"step {self.tracker.step}, so it was stopped.",
                )

    def _listen(self, child: Child) -> bool:
        """Pass on what the child says; whether it said anything."""
        events = child.events(LISTEN)
        for event in events:
            self.tracker.add(event)
        return bool(events)

    def _hand_back(self, child: Child, checkpoints: CheckpointKeeper) -> None:
        self.tracker.phase(
            "stopping", "The worker is being stopped; the job goes on from its last checkpoint."
        )
        child.tell("checkpoint")
        child.tell("cancel")
        child.wait(STOP_GRACE)
        checkpoints.flush(STORE_GRACE)
        raise _stopped()

    def _judge(self, status: int) -> None:
        """Raise for every end of the child that is not a result."""
        failure = self.folder.path / "failure.json"
        if failure.is_file():
            told = JobFailure.model_validate_json(failure.read_bytes())
            raise JobFailed(told.code, told.message, told.fault)
        if (self.folder.path / "result.json").is_file() and status == 0:
            return
        log.error(
            "job %s: child ended with status %d; see %s",
            self.claim.job,
            status,
            self.folder.path / "child.log",
        )
        if status == CANCELLED:
            raise JobCancelled
        if status == NO_SPACE:
            raise JobFailed(DISK_FULL.code, DISK_FULL.message)
        if status < 0:
            raise JobFailed(
                "child_killed",
                f"The {self.claim.kind} process was ended by signal {-status}; often memory ran out.",
            )
        raise JobFailed(
            "child_died", f"The {self.claim.kind} process ended with status {status} and no result."
        )

    def _outputs(self, job: ChildJob) -> tuple[dict[str, object], list[OutputFile]]:
        """What to tell and what to upload, the manifest last."""
        out = Path(job.out)
        if job.kind == "train":
            manifest = AdapterManifest.model_validate_json((out / "adapter" / "manifest.json").read_bytes())
            names = [file.name for file in manifest.files] + ["manifest.json"]
            files = [_output(out / "adapter" / name) for name in names]
            return {"manifest_sha256": files[-1].sha256}, files
        result = ChildResult.model_validate_json((self.folder.path / "result.json").read_bytes()).result
        if job.kind in ("validate", "derive"):
            rows = out / "rows.parquet"  # there only when rows can be trained on
            files = [_output(rows)] if rows.is_file() else []
            return ({**result, "sha256": self.digests["data"]} if job.kind == "validate" else result), files
        return result, [_output(out / "rows.jsonl")] if job.kind == "evaluate" else []

    def _upload(self, files: list[OutputFile], out: Path, reporter: Reporter) -> None:
        """One after the other, in order: a manifest in the store says that its files are there."""
        source = out / "adapter" if self.claim.kind == "train" else out
        with make_client() as client:
            for file in files:
                self.tracker.phase("uploading", f"Storing {file.name} ({file.size:,} bytes).")
                self._upload_one(client, source / file.name, file, reporter)

    def _upload_one(self, client: httpx.Client, source: Path, file: OutputFile, reporter: Reporter) -> None:
        """A fresh grant for every try: what failed may be the old one, expired."""
        deadline = time.monotonic() + STORE_PATIENCE
        for seconds in growing_pauses(first=1.0):
            grant = self.client.grant(self.claim.job, self.claim.token, file)
            try:
                upload(client, grant.url, source, check=reporter.check_fence)
                return
            except TransferError as error:
                log.warning("job %s: %s", self.claim.job, error)
                if time.monotonic() + seconds > deadline:
                    raise
            if self.stopping.is_set():
                raise _stopped()
            self.tracker.phase("uploading", f"The object store does not take {file.name} yet; trying again.")
            pause(seconds, reporter.check_fence)

    def _finish(self, request: FinishRequest) -> None:
        """Tell the platform; then forget the folder, unless another attempt can go on from it."""
        how = "with a result" if request.result is not None else "cancelled"
        if request.failure is not None:
            how = f"failed ({request.failure.fault}, {request.failure.code})"
        log.info("job %s: attempt %d ends %s", self.claim.job, self.claim.attempt, how)
        try:
            self.client.finish(
                self.claim.job, request, LAST_WORD if self.stopping.is_set() else FINISH_PATIENCE
            )
        except Refused as refused:
            log.warning("job %s: the platform refused the finish: %s", self.claim.job, refused)
            return
        except Unreachable as error:
            log.error("job %s: the finish could not be delivered: %s", self.claim.job, error)
            return
        ours = request.failure is not None and request.failure.fault == "platform"
        if not ours and not self.checkpoint_only_here:
            self.folder.remove()


def _stopped() -> JobFailed:
    return JobFailed("worker_stopped", "The worker was stopped; the job goes on from its last checkpoint.")


def _output(path: Path) -> OutputFile:
    return OutputFile(name=path.name, size=path.stat().st_size, sha256=sha256_of(path))
