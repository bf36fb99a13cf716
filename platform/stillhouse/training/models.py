"""Training runs: a person's intent and the specification it was frozen into."""

from typing import ClassVar

from django.db import models

from stillhouse.accounts.models import User, Workspace
from stillhouse.catalog.models import BaseModel
from stillhouse.core.ids import IdField
from stillhouse.datasets.models import DatasetVersion
from stillhouse.jobs.models import Job
from workers.contract import TokenCounts, TrainSpec


class Preset(models.TextChoices):
    QUICK = "quick", "Quick"
    BALANCED = "balanced", "Balanced"
    THOROUGH = "thorough", "Thorough"


class TrainingRun(models.Model):
    """It has no state of its own: it shows its Job's."""

    id = IdField("run")
    workspace = models.ForeignKey(Workspace, models.PROTECT, related_name="runs")
    adapter_name = models.SlugField(max_length=60)
    """Name of the adapter that a success adds a version to."""
    base = models.ForeignKey(BaseModel, models.PROTECT, related_name="+")
    data = models.ForeignKey(DatasetVersion, models.PROTECT, related_name="runs")
    eval_data = models.ForeignKey(DatasetVersion, models.PROTECT, null=True, related_name="+")
    """None when a share of `data` is held out instead."""
    preset = models.CharField(max_length=10, choices=Preset.choices)
    spec_body = models.JSONField()
    metadata = models.JSONField(default=dict, db_default={})
    """What an app noted about it, name to text; nothing here reads it."""
    job = models.OneToOneField(Job, models.PROTECT, related_name="+")
    started_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["-created_at"]

    @property
    def spec(self) -> TrainSpec:
        return TrainSpec.model_validate(self.spec_body)


class TokenCount(models.Model):
    """The token histogram of a dataset version with one base, its template and one think policy."""

    id = IdField("tc")
    version = models.ForeignKey(DatasetVersion, models.CASCADE, related_name="token_counts")
    base = models.ForeignKey(BaseModel, models.PROTECT, related_name="+")
    base_digest = models.CharField(max_length=64)
    template_sha256 = models.CharField(max_length=64)
    think_policy = models.CharField(max_length=12)
    job = models.OneToOneField(Job, models.PROTECT, related_name="+")
    """The `count` job."""
    body = models.JSONField(null=True)
    """TokenCounts; None until the job has ended well."""
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["version", "base", "base_digest", "template_sha256", "think_policy"],
                name="tokens_counted_once",
            )
        ]

    @property
    def counts(self) -> TokenCounts | None:
        return TokenCounts.model_validate(self.body) if self.body else None


class RowPreview(models.Model):
    """Rows of a dataset version as a base sees them: a PreviewResult, computed once."""

    id = IdField("rp")
    version = models.ForeignKey(DatasetVersion, models.CASCADE, related_name="+")
    base = models.ForeignKey(BaseModel, models.PROTECT, related_name="+")
    template_sha256 = models.CharField(max_length=64)
    think_policy = models.CharField(max_length=12)
    max_length = models.PositiveIntegerField()
    first_row = models.PositiveIntegerField()
    """Number of the first row shown; 0: the first there is, with figures over all of them."""
    job = models.OneToOneField(Job, models.PROTECT, related_name="+")
    """The `preview` job."""
    body = models.JSONField(null=True)
    """None until the job has ended well."""
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["version", "base", "template_sha256", "think_policy", "max_length", "first_row"],
                name="rows_previewed_once",
            )
        ]


class RunMeasure(models.Model):
    """What a finished run was expected to take by the closed form alone, and what it took.

    The next estimates for the same base and kind of machine are corrected by it.
    """

    run = models.OneToOneField(TrainingRun, models.CASCADE, primary_key=True, related_name="measure")
    base_digest = models.CharField(max_length=64)
    device_class = models.CharField(max_length=120)
    """A GPU class of `workers.contract.machines`, or `cpu`."""
    predicted_seconds = models.FloatField()
    seconds = models.FloatField()
    predicted_memory_bytes = models.PositiveBigIntegerField()
    memory_bytes = models.PositiveBigIntegerField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["base_digest", "device_class", "-created_at"])]
