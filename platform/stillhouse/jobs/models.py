"""Pieces of worker execution, and the outbox that rings for them."""

from datetime import timedelta
from typing import ClassVar

from django.db import models

from stillhouse.accounts.models import User, Workspace
from stillhouse.core.ids import IdField
from stillhouse.core.transitions import Table

QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED = "queued", "running", "succeeded", "failed", "cancelled"
TRANSITIONS: Table = {
    QUEUED: frozenset({RUNNING, CANCELLED, FAILED}),
    RUNNING: frozenset({SUCCEEDED, FAILED, CANCELLED, QUEUED}),
    SUCCEEDED: frozenset(),
    FAILED: frozenset(),
    CANCELLED: frozenset(),
}
ENDED = (SUCCEEDED, FAILED, CANCELLED)


class Kind(models.TextChoices):
    VALIDATE = "validate"
    TRAIN = "train"
    EVALUATE = "evaluate"


class Job(models.Model):
    """One piece of worker execution: attempt, lease, fencing token."""

    id = IdField("job")
    workspace = models.ForeignKey(Workspace, models.PROTECT, related_name="jobs")
    kind = models.CharField(max_length=10, choices=Kind.choices)
    queue = models.CharField(max_length=40)
    subject = models.CharField(max_length=40)
    """Id of the dataset version, training run or evaluation it works for."""
    spec = models.JSONField()
    """Frozen: ValidateSpec, TrainSpec or EvaluateSpec."""
    state = models.CharField(max_length=10, default=QUEUED)
    attempt = models.PositiveIntegerField(default=0)
    max_attempts = models.PositiveIntegerField(default=3)
    token_digest = models.CharField(max_length=64, blank=True)
    """HMAC of the current attempt's fencing token."""
    worker = models.CharField(max_length=120, blank=True)
    lease_until = models.DateTimeField(null=True)
    cancel_requested_at = models.DateTimeField(null=True)

    phase = models.CharField(max_length=40, blank=True)
    message = models.CharField(max_length=500, blank=True)
    step = models.PositiveIntegerField(default=0)
    total_steps = models.PositiveIntegerField(default=0)
    eta_seconds = models.FloatField(null=True)
    log_tail = models.TextField(blank=True)
    failure = models.JSONField(null=True)
    """JobFailure, when it failed (or when the last attempt did)."""

    created_by = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True)
    """Of the current attempt."""
    reported_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(condition=models.Q(state__in=list(TRANSITIONS)), name="job_state_known"),
            models.CheckConstraint(
                condition=~models.Q(state=RUNNING) | models.Q(lease_until__isnull=False),
                name="running_job_has_lease",
            ),
        ]
        indexes: ClassVar = [
            models.Index(fields=["state", "lease_until"]),
            models.Index(fields=["workspace", "kind", "-created_at"]),
            models.Index(fields=["subject"]),
        ]

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def progress(self) -> float:
        """0..1 over the optimizer steps (or rows) reported so far."""
        return min(1.0, self.step / self.total_steps) if self.total_steps else 0.0

    @property
    def duration(self) -> timedelta | None:
        return self.finished_at - self.started_at if self.finished_at and self.started_at else None


class Metric(models.Model):
    """One point of a job's curves. A resumed attempt writes the same steps again: the last word counts."""

    job = models.ForeignKey(Job, models.CASCADE, related_name="metrics")
    step = models.PositiveIntegerField()
    attempt = models.PositiveIntegerField()
    values = models.JSONField()
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["job", "step"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["job", "step"], name="one_metric_per_step")]


class Outbox(models.Model):
    """A doorbell still to be rung: written in the transaction that queued the job, sent by the keeper."""

    job = models.ForeignKey(Job, models.CASCADE, related_name="outbox_entries")
    created_at = models.DateTimeField(auto_now_add=True)
    sent_at = models.DateTimeField(null=True)

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["id"], condition=models.Q(sent_at__isnull=True), name="outbox_unsent")
        ]
