"""What the child tells its parent, and how it becomes reports."""

import math
import threading
import time
from collections import deque

from pydantic import Field

from workers.contract import Message, MetricPoint, ReportRequest, TrainProgress

POINTS_PER_REPORT = 1000
POINTS_KEPT = 20_000
"""Metric points kept while the platform is away; beyond it the oldest are dropped."""
LOG_LINES = 100
LOG_CHARACTERS = 20_000


class ChildEvent(Message):
    """One line of the child's event stream: where it is. Holds no data of the dataset."""

    phase: str
    message: str = ""
    step: int = Field(default=0, ge=0)
    total_steps: int = Field(default=0, ge=0)
    eta_seconds: float | None = None
    values: dict[str, float] = {}
    """Metrics of `step`."""


def event_of_training(progress: TrainProgress) -> ChildEvent:
    """The trainer's own event in the child's words."""
    values = {
        "loss": progress.loss,
        "learning_rate": progress.learning_rate,
        "grad_norm": progress.grad_norm,
        "tokens_per_second": progress.tokens_per_second,
    }
    return ChildEvent(
        phase=progress.phase,
        message=progress.message,
        step=progress.step,
        total_steps=progress.total_steps,
        eta_seconds=progress.eta_seconds,
        values={name: value for name, value in values.items() if value is not None and math.isfinite(value)},
    )


class Tracker:
    """The latest state of the child and the points not yet reported.

    Shared by the job's thread and the reporter.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        self._lock = threading.Lock()
        self._latest = ChildEvent(phase="starting")
        self._points: deque[MetricPoint] = deque(maxlen=POINTS_KEPT)
        self._log: deque[str] = deque(maxlen=LOG_LINES)

    def add(self, event: ChildEvent) -> None:
        with self._lock:
            said = (self._latest.phase, self._latest.message)
            self._latest = event
            if event.values and event.phase == "training":
                self._points.append(MetricPoint(step=event.step, values=event.values))
            if event.message and (event.phase, event.message) != said:
                self._log.append(
                    f"{time.strftime('%H:%M:%S', time.gmtime())}Z {event.phase}: {event.message}"
                )

    def phase(self, phase: str, message: str) -> None:
        """The parent's own progress, before and after the child; the step count stays."""
        with self._lock:
            latest = self._latest
        self.add(
            latest.model_copy(update={"phase": phase, "message": message, "values": {}, "eta_seconds": None})
        )

    @property
    def training(self) -> bool:
        """Whether the child has steps to lose."""
        return self._latest.phase == "training"

    @property
    def step(self) -> int:
        return self._latest.step

    def report(self) -> tuple[ReportRequest, int]:
        """The next report, and how many points it carries."""
        with self._lock:
            latest, points = self._latest, list(self._points)[:POINTS_PER_REPORT]
            tail = "\n".join(self._log)[-LOG_CHARACTERS:]
        eta = latest.eta_seconds
        request = ReportRequest(
            token=self._token,
            phase=latest.phase[:40],
            message=latest.message[:500],
            step=latest.step,
            total_steps=latest.total_steps,
            eta_seconds=eta if eta is not None and math.isfinite(eta) else None,
            metrics=points,
            log_tail=tail,
        )
        return request, len(points)

    def reported(self, points: int) -> None:
        """The platform has the first `points` of what `report` gave."""
        with self._lock:
            for _ in range(min(points, len(self._points))):
                self._points.popleft()
