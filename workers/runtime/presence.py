"""What a worker says about itself, every half minute, and whether it is to leave the doorbells alone."""

import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from workers.contract import EnrolRequest, HelloRequest, WorkerFacts
from workers.runtime.client import WorkerClient
from workers.runtime.disk import trouble_with
from workers.runtime.folder import remove_old_folders
from workers.runtime.settings import SECRET_FILE, WorkerSettings
from workers.wire.api import Refused, Unreachable
from workers.wire.environment import SettingsError

log = logging.getLogger(__name__)

HELLO_SECONDS = 30.0
DEAF_AFTER = 2
"""Answers in a row that tell of an unheard doorbell; after the first, one that has just begun may take it."""
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "safetensors")


def own_token(settings: WorkerSettings) -> str:
    """The bearer token of this worker: its own secret where it has enrolled, else the shared token.

    Enrols when there is a one-time token and no secret yet. Raises Refused or Unreachable when that fails,
    SettingsError when the secret could not be kept: the token is then still good.
    """
    path = settings.work_dir / SECRET_FILE
    if path.exists():
        return path.read_text(encoding="utf-8").strip()
    if not settings.enrol_token:
        return settings.token
    if trouble := trouble_with(settings.work_dir):
        raise SettingsError(trouble)
    client = WorkerClient(settings.url, settings.enrol_token)
    try:
        secret = client.enrol(EnrolRequest(worker=settings.name)).secret
    finally:
        client.close()
    partial = path.with_name(f".{SECRET_FILE}")
    partial.touch(mode=0o600)
    partial.write_text(secret, encoding="utf-8")
    os.replace(partial, path)
    log.info("enrolled as %s", settings.name)
    return secret


def facts(settings: WorkerSettings, queue: str) -> WorkerFacts:
    """Machine and libraries; imports none of them. With a WORK_DIR in trouble it has no slot."""
    trouble = trouble_with(settings.work_dir)
    return WorkerFacts(
        queue=queue[:40],
        slots=0 if trouble else 1,
        trouble=trouble[:400],
        host=platform.node()[:120],
        devices=_devices(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        cores=len(os.sched_getaffinity(0)),
        disk_free_bytes=_free(settings.work_dir),
        versions={"python": platform.python_version(), **_versions()},
    )


def _free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _devices() -> list[str]:
    """Accelerators as their driver names them, with their memory."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip()[:120] for line in done.stdout.splitlines() if line.strip()][:64]


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class Presence:
    """A thread that says hello.

    `on_rest(True)` is called when no more work is to be taken, and back; `on_deaf` when doorbells lie at the
    broker for this worker and it does not take them.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        token: str,
        queue: str,
        on_rest: Callable[[bool], None],
        on_deaf: Callable[[], None],
    ) -> None:
        self._settings, self._queue = settings, queue
        self._on_rest, self._on_deaf = on_rest, on_deaf
        self._client = WorkerClient(settings.url, token)
        self._stop = threading.Event()
        self._resting = False
        self._unheard = 0
        self._said = ""
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while True:
            try:
                self._say_hello()
            except OSError as error:
                log.warning("hello: %s", type(error).__name__)
            if self._stop.wait(HELLO_SECONDS):
                return

    def _say_hello(self) -> None:
        told = facts(self._settings, self._queue)
        try:
            answer = self._client.hello(HelloRequest(worker=self._settings.name, facts=told))
        except Refused as refused:  # its claims would be, too
            self._rest(True, f"the platform gives this worker no work: {refused}")
        except Unreachable as error:
            log.warning("hello: %s", error)
        else:
            why = "the platform drains this worker" if answer.draining else told.trouble
            self._rest(bool(why), why or "working again")
            self._listen(answer.unheard and not why)
        if told.trouble:
            for job in remove_old_folders(self._settings.work_dir):
                log.info("removed the old folder of job %s", job)

    def _listen(self, unheard: bool) -> None:
        self._unheard = self._unheard + 1 if unheard else 0
        if self._unheard == DEAF_AFTER:
            self._unheard = 0
            log.error("the platform rings, and this worker does not hear it: it connects to the broker anew")
            self._on_deaf()

    def _rest(self, rest: bool, why: str) -> None:
        if why != self._said and (rest or self._resting):  # once, not every half minute
            log.log(logging.ERROR if rest else logging.INFO, "%s", why)
        self._said = why
        if rest != self._resting:
            self._resting = rest
            self._on_rest(rest)
