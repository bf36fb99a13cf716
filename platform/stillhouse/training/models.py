"""Training runs: a person's intent and the specification it was frozen into."""

from typing import ClassVar

from django.db import models

from stillhouse.accounts.models import User, Workspace
from stillhouse.catalog.models import BaseModel
from stillhouse.core.ids import IdField
from stillhouse.datasets.models import DatasetVersion
from stillhouse.jobs.models import Job
from workers.contract import TrainSpec


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
    job = models.OneToOneField(Job, models.PROTECT, related_name="+")
    started_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["-created_at"]

    @property
    def spec(self) -> TrainSpec:
        return TrainSpec.model_validate(self.spec_body)
