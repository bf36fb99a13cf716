"""Checkpoints outlive the machine: uploaded while the trainer goes on, fetched before another attempt begins.

The trainer writes `checkpoints/step-N` whole, by a rename, and prunes its own. This side asks for one when
the last is too old, sends the newest to the object store, and tells the platform when every file is there.
"""

import contextlib
import json
import logging
import os
import shutil
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from workers.contract import CHECKPOINT_DAMAGED, CheckpointRequest, ClaimAnswer, OutputFile
from workers.runtime.client import WorkerClient
from workers.runtime.outcome import JobFailed
from workers.wire.api import Refused, Unreachable, growing_pauses
from workers.wire.transfer import Patience, TransferError, download, make_client, sha256_of, upload

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
MANIFEST = "state.json"
"""The trainer's own list of a checkpoint's files and their digests; it is uploaded last."""
BEGINNING = "beginning"
"""File in the job's folder: the attempt that what lies in `out` counts from."""
LOOK_SECONDS = 0.5


def newest_step(out: Path) -> int | None:
    """Step of the newest whole checkpoint in `out`; None when there is none."""
    steps = [int(path.name[5:]) for path in (out / FOLDER).glob("step-*") if path.name[5:].isdecimal()]
    return max(steps, default=None)


def restore(claim: ClaimAnswer, job_folder: Path, patience: Patience) -> bool:
    """Leave in `out` what this attempt may go on from; returns whether there is anything.

    Where the work begins anew, what earlier attempts left is removed. Otherwise the newest checkpoint counts:
    the one on this disk, or the stored one, which is fetched. A damaged one on this disk is removed, and the
    one before it counts. Raises TransferError when the stored one cannot be fetched, JobFailed
    `checkpoint_damaged` when the store has not the one that the platform noted: the platform then drops it.
    """
    out, marker = job_folder / "out", job_folder / BEGINNING
    known = marker.read_text(encoding="utf-8") if marker.exists() else "1"
    if known != str(claim.beginning):
        shutil.rmtree(out, ignore_errors=True)
    marker.write_text(str(claim.beginning), encoding="utf-8")
    out.mkdir(exist_ok=True)
    _remove_damaged(out)
    here, stored = newest_step(out), claim.checkpoint
    if stored is not None and (here is None or stored.step > here):
        _fetch(claim, out / FOLDER, patience)
    return newest_step(out) is not None


def _remove_damaged(out: Path) -> None:
    """Leave on this disk no newest checkpoint that a dying disk or a power cut has torn."""
    while (step := newest_step(out)) is not None:
        folder = out / FOLDER / f"step-{step:08d}"
        if _is_whole(folder):
            return
        log.warning("the checkpoint at step %d is damaged; the one before it counts", step)
        shutil.rmtree(folder)


def _is_whole(folder: Path) -> bool:
    """Whether every file has the digest that the manifest names."""
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
        return all(sha256_of(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _fetch(claim: ClaimAnswer, folder: Path, patience: Patience) -> None:
    assert claim.checkpoint is not None
    partial = folder / ".fetched"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with make_client() as client:
        for file in claim.checkpoint.files:
            try:
                download(
                    client,
                    file.url,
                    partial / file.name,
                    size=file.size,
                    sha256=file.sha256,
                    patience=patience,
                )
            except TransferError as error:
                if error.code not in ("checksum_mismatch", "size_mismatch", "object_missing"):
                    raise
                raise JobFailed(
                    CHECKPOINT_DAMAGED,
                    f"The stored checkpoint at step {claim.checkpoint.step} is not there as it was written. "
                    "The next attempt goes on from the one before it.",
                ) from None
    os.replace(partial, folder / f"step-{claim.checkpoint.step:08d}")


class CheckpointKeeper:
    """Use as a context manager around the child of one attempt."""

    def __init__(self, client: WorkerClient, claim: ClaimAnswer, job_folder: Path) -> None:
        self._client, self._claim = client, claim
        self._out, self._spool = job_folder / "out", job_folder / "sending"
        self._sent = claim.checkpoint.step if claim.checkpoint else -1
        self._newest = newest_step(self._out)
        self._began = time.monotonic()
        self._asked = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"checkpoints-{claim.job}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=2.0)  # an upload under way may end by itself

    def wanted(self, training: bool, asked: bool) -> bool:
        """Whether to ask the trainer for a checkpoint now: the platform `asked`, or the last one is too old.

        One that is asked for and not written yet is not asked for again. Time before the first step of an
        attempt does not count: there is nothing new to keep.
        """
        newest = newest_step(self._out)
        if newest != self._newest or not training:
            self._newest, self._began, self._asked = newest, time.monotonic(), False
        late = time.monotonic() - self._began > self._claim.checkpoint_seconds
        if not training or self._asked or not (asked or late):
            return False
        self._asked = True
        return True

    def flush(self, seconds: float) -> bool:
        """Wait until the newest checkpoint is stored; whether it is."""
        deadline = time.monotonic() + seconds
        while not self.stored and time.monotonic() < deadline and self._thread.is_alive():
            time.sleep(0.1)
        return self.stored

    @property
    def stored(self) -> bool:
        """Whether the platform has the newest checkpoint."""
        newest = newest_step(self._out)
        return newest is None or newest <= self._sent

    def _run(self) -> None:
        pauses = growing_pauses(first=1.0)
        while not self._stop.wait(LOOK_SECONDS):
            if self.stored:
                continue
            try:
                self._send_newest()
                pauses = growing_pauses(first=1.0)
            except Refused as refused:
                log.warning("job %s: a checkpoint was refused: %s", self._claim.job, refused)
                if refused.code != "bad_request":
                    return
                self._stop.wait(next(pauses))
            except (Unreachable, TransferError, OSError) as error:
                log.warning("job %s: a checkpoint is not stored yet: %s", self._claim.job, error)
                self._stop.wait(next(pauses))

    def _send_newest(self) -> None:
        """Upload the newest checkpoint from links of its files: the trainer may prune it meanwhile."""
        step = newest_step(self._out)
        if step is None:
            return
        shutil.rmtree(self._spool, ignore_errors=True)
        self._spool.mkdir()
        for path in (self._out / FOLDER / f"step-{step:08d}").iterdir():
            os.link(path, self._spool / path.name)
        paths = sorted(self._spool.iterdir(), key=lambda path: (path.name == MANIFEST, path.name))
        files = [
            OutputFile(name=path.name, size=path.stat().st_size, sha256=sha256_of(path)) for path in paths
        ]
        with make_client() as http:
            for path, file in zip(paths, files, strict=True):
                grant = self._client.grant(self._claim.job, self._claim.token, file, checkpoint=step)
                upload(http, grant.url, path, check=self._check)
        request = CheckpointRequest(token=self._claim.token, step=step, files=files)
        self._client.checkpoint(self._claim.job, request)
        self._sent = step
        log.info("job %s: the checkpoint at step %d is stored", self._claim.job, step)
        with contextlib.suppress(OSError):
            shutil.rmtree(self._spool)

    def _check(self) -> None:
        if self._stop.is_set():
            raise TransferError("upload_failed", "The attempt ended before its checkpoint was stored.")
