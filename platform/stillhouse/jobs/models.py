"""Pieces of worker execution, their attempts and checkpoints, and the outbox that rings for them."""

from datetime import timedelta
from typing import ClassVar

from django.db import models
from django.db.models.functions import Now

from stillhouse.accounts.models import User, Workspace
from stillhouse.core.ids import IdField
from stillhouse.core.transitions import Table

QUEUED, RUNNING, PAUSED = "queued", "running", "paused"
SUCCEEDED, FAILED, CANCELLED = "succeeded", "failed", "cancelled"
TRANSITIONS: Table = {
    QUEUED: frozenset({RUNNING, PAUSED, CANCELLED, FAILED}),
    RUNNING: frozenset({SUCCEEDED, FAILED, CANCELLED, QUEUED, PAUSED}),
    PAUSED: frozenset({QUEUED, CANCELLED}),
    SUCCEEDED: frozenset(),
    FAILED: frozenset({QUEUED}),  # a person tries it again
    CANCELLED: frozenset({QUEUED}),
}
ENDED = (SUCCEEDED, FAILED, CANCELLED)


class Kind(models.TextChoices):
    VALIDATE = "validate"
    TRAIN = "train"
    EVALUATE = "evaluate"
    COUNT = "count"
    DERIVE = "derive"
    COMPARE = "compare"
    PREVIEW = "preview"


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
    priority = models.SmallIntegerField(default=0, db_default=0)
    """Within the workspace, the highest first; between workspaces their shares decide."""
    due_at = models.DateTimeField(null=True)
    """Not before this moment: the pause after a failure of ours."""
    attempt = models.PositiveIntegerField(default=0)
    max_attempts = models.PositiveIntegerField(default=3)
    failures = models.PositiveIntegerField(default=0, db_default=0)
    """Attempts that ended by a fault of ours since a person last queued it, or since one got far (that one
    included), up to `max_attempts`."""
    beginning = models.PositiveIntegerField(default=1, db_default=1)
    """The attempt that the work counts from: what earlier ones left is not gone on from."""
    resumed_step = models.PositiveIntegerField(default=0, db_default=0)
    """Of the checkpoint that the current attempt goes on from."""
    token_digest = models.CharField(max_length=64, blank=True)
    """HMAC of the current attempt's fencing token."""
    worker = models.CharField(max_length=120, blank=True)
    lease_until = models.DateTimeField(null=True)
    cancel_requested_at = models.DateTimeField(null=True)
    pause_requested_at = models.DateTimeField(null=True)

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
    def cancelling(self) -> bool:
        """Its worker is asked to stop and has not answered yet."""
        return self.state == RUNNING and self.cancel_requested_at is not None

    @property
    def pausing(self) -> bool:
        """Its worker is asked to hand it back and has not answered yet."""
        return self.state == RUNNING and self.pause_requested_at is not None and not self.cancelling

    @property
    def progress(self) -> float:
        """0..1 over the optimizer steps (or rows) reported so far."""
        return min(1.0, self.step / self.total_steps) if self.total_steps else 0.0

    @property
    def duration(self) -> timedelta | None:
        return self.finished_at - self.started_at if self.finished_at and self.started_at else None


class Attempt(models.Model):
    """One worker's go at a job: the job's timeline, and what shares and quotas are counted from."""

    job = models.ForeignKey(Job, models.CASCADE, related_name="attempts")
    workspace = models.ForeignKey(Workspace, models.PROTECT, related_name="+")
    queue = models.CharField(max_length=40)
    number = models.PositiveIntegerField()
    worker = models.CharField(max_length=120)
    resumed_step = models.PositiveIntegerField(default=0)
    last_step = models.PositiveIntegerField(default=0)
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    outcome = models.CharField(max_length=12, default=RUNNING)
    """running, succeeded, failed, cancelled, paused, lost, or handed_back."""
    code = models.CharField(max_length=60, blank=True)
    message = models.CharField(max_length=2000, blank=True)

    class Meta:
        ordering: ClassVar = ["job", "number"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["job", "number"], name="one_row_per_attempt"),
            models.UniqueConstraint(
                fields=["job"], condition=models.Q(ended_at__isnull=True), name="one_attempt_at_a_time"
            ),
        ]
        indexes: ClassVar = [models.Index(fields=["queue", "ended_at"])]


class Checkpoint(models.Model):
    """Resumable state of a job in the object store: a row exists only when all of its files are there."""

    job = models.ForeignKey(Job, models.CASCADE, related_name="checkpoints")
    attempt = models.PositiveIntegerField()
    step = models.PositiveIntegerField()
    files = models.JSONField()
    """A list of OutputFile; the last one is the checkpoint's own manifest."""
    created_at = models.DateTimeField(db_default=Now())
    dropped_at = models.DateTimeField(null=True)
    """Nobody may go on from it any more; the keeper removes its objects, then the row."""

    class Meta:
        ordering: ClassVar = ["job", "step", "attempt"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["job", "attempt", "step"], name="one_checkpoint_per_step"),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["id"], condition=models.Q(dropped_at__isnull=False), name="checkpoint_dropped"
            )
        ]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file["size"] for file in self.files)


class Share(models.Model):
    """What a workspace may use of a queue. Without a row: weight 1 and no limit."""

    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="shares")
    queue = models.CharField(max_length=40)
    weight = models.PositiveIntegerField(default=1)
    """A workspace of weight 2 gets twice the time of one of weight 1 while both wait."""
    minutes_per_month = models.PositiveIntegerField(null=True)
    """Worker minutes in a calendar month (UTC); None: no limit."""

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["workspace", "queue"], name="one_share_per_queue"),
            models.CheckConstraint(condition=models.Q(weight__gte=1), name="share_has_weight"),
        ]


class Worker(models.Model):
    """A worker process that the platform knows: enrolled with a secret of its own, or by the shared token."""

    id = IdField("wrk")
    name = models.CharField(max_length=120, unique=True)
    secret_digest = models.CharField(max_length=64, blank=True)
    """HMAC of its secret; empty while it uses the shared token."""
    queue = models.CharField(max_length=40, blank=True)
    slots = models.PositiveSmallIntegerField(default=1)
    contract = models.PositiveIntegerField(default=0)
    facts = models.JSONField(default=dict)
    """WorkerFacts as it last said: devices, memory, disk, versions."""
    created_at = models.DateTimeField(auto_now_add=True)
    seen_at = models.DateTimeField(null=True)
    draining_since = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)

    class Meta:
        ordering: ClassVar = ["name"]
        indexes: ClassVar = [models.Index(fields=["secret_digest"])]


class Enrolment(models.Model):
    """A one-time token with which one worker may enrol."""

    digest = models.CharField(max_length=64, unique=True)
    name = models.CharField(max_length=120)
    """Of the worker that may use it."""
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)


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
