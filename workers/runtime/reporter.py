"""The heartbeat: a thread that reports every few seconds and keeps what the platform answered."""

import logging
import threading
import time
from types import TracebackType
from typing import Literal, Self

from workers.contract import ClaimAnswer
from workers.runtime.client import WorkerClient
from workers.runtime.events import Tracker
from workers.runtime.outcome import JobCancelled, JobLost
from workers.wire.api import NoRoom, Refused, Unreachable

log = logging.getLogger(__name__)

SILENCE_LIMIT = 45.0
"""Seconds without a successful report after which the worker stops its own trainer."""
SILENCE_SHARE = 0.75
"""The same as a share of the lease: always stop before the job may go to somebody else."""

FLUSHES = 20


class Reporter:
    """Use as a context manager around the whole attempt. `check` is what the job's thread asks, often."""

    def __init__(self, client: WorkerClient, claim: ClaimAnswer, tracker: Tracker) -> None:
        self._client, self._claim, self._tracker = client, claim, tracker
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._reporting = threading.Lock()
        self._action: Literal["continue", "checkpoint", "cancel"] = "continue"
        self._refusal = ""
        self._last_heard = time.monotonic()
        self._limit = min(SILENCE_LIMIT, claim.lease_seconds * SILENCE_SHARE)
        self._thread = threading.Thread(target=self._run, name=f"report-{claim.job}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=2.0)  # a report under way may end by itself

    def check(self) -> None:
        """Raise JobLost when the job is not ours any more, JobCancelled when somebody cancelled it."""
        if self._refusal:
            raise JobLost(self._refusal)
        silent = time.monotonic() - self._last_heard
        if silent > self._limit:
            raise JobLost(f"no successful report for {silent:.0f} s")
        if self._action == "cancel":
            raise JobCancelled

    def check_fence(self) -> None:
        """For the delivery of a finished result: a refusal or a cancel stops it, silence does not."""
        if self._refusal:
            raise JobLost(self._refusal)
        if self._action == "cancel":
            raise JobCancelled

    def take_checkpoint_wish(self) -> bool:
        """True once for every answer that asked for a checkpoint."""
        with self._lock:
            wished = self._action == "checkpoint"
            if wished:
                self._action = "continue"
            return wished

    def _run(self) -> None:
        while not self._refusal:
            self._report_once()
            if self._stop.wait(self._claim.report_seconds):
                return

    def flush(self) -> None:
        """Report what is not reported yet: the curve has its last points before the job is finished."""
        for _ in range(FLUSHES):
            if self._refusal or not self._report_once():
                return

    def _report_once(self) -> bool:
        """One report. True when it carried points and the platform took them: there may be more."""
        with self._reporting:
            return self._report()

    def _report(self) -> bool:
        request, points = self._tracker.report()
        asked = time.monotonic()
        try:
            answer = self._client.report(self._claim.job, request)
        except Refused as refused:
            self._refusal = str(refused)
        except Unreachable as error:
            log.warning("job %s: report failed: %s", self._claim.job, error)
            if isinstance(error, NoRoom):
                self._last_heard = asked
        except Exception:
            if not self._stop.is_set():  # else the connection was closed under it, and nobody waits
                log.exception("job %s: report failed", self._claim.job)
        else:
            self._tracker.reported(points)
            self._last_heard = asked
            with self._lock:
                if self._action == "continue" or answer.action == "cancel":
                    self._action = answer.action
            return points > 0
        return False
