"""Evaluations: a version beside its base on the same held-out rows, through the engine that serves it."""

from typing import ClassVar

from django.db import models

from stillhouse.adapters.models import AdapterVersion
from stillhouse.core.ids import IdField
from stillhouse.datasets.models import DatasetVersion
from stillhouse.jobs.models import Job
from workers.contract import EvaluationSummary


class Evaluation(models.Model):
    id = IdField("ev")
    version = models.ForeignKey(AdapterVersion, models.PROTECT, related_name="evaluations")
    data = models.ForeignKey(DatasetVersion, models.PROTECT, related_name="+")
    heldout_share = models.FloatField(default=0)
    """Above 0: only the held-out rows of `data`, split as the run split them."""
    job = models.OneToOneField(Job, models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)


class EvaluationResult(models.Model):
    """What an evaluation ended with. Written once."""

    evaluation = models.OneToOneField(Evaluation, models.CASCADE, primary_key=True, related_name="result")
    summary_body = models.JSONField()
    rows_sha256 = models.CharField(max_length=64)
    """Blob of `rows.jsonl`; an approval is bound to it."""
    confidence = models.JSONField(null=True)
    """A Calibration of the adapter's answers; None where there are too few, or none with margins."""
    calibration = models.JSONField(null=True)
    """What results of earlier versions have in its place: their processes do not know today's fields."""
    created_at = models.DateTimeField(auto_now_add=True)

    @property
    def summary(self) -> EvaluationSummary:
        return EvaluationSummary.model_validate(self.summary_body)


class EvaluatedRow(models.Model):
    """One held-out row with both answers: an EvaluationRow."""

    evaluation = models.ForeignKey(Evaluation, models.CASCADE, related_name="rows")
    index = models.PositiveIntegerField()
    body = models.JSONField()
    base_exact = models.BooleanField()
    adapter_exact = models.BooleanField()

    class Meta:
        ordering: ClassVar = ["evaluation", "index"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["evaluation", "index"], name="evaluated_row_unique")
        ]
