"""The registry: adapters, and their immutable versions."""

from typing import ClassVar

from django.db import models

from stillhouse.accounts.models import Workspace
from stillhouse.core.ids import IdField
from stillhouse.core.transitions import Table
from stillhouse.training.models import TrainingRun
from workers.contract import AdapterManifest

CANDIDATE, APPROVED, REJECTED, RETIRED = "candidate", "approved", "rejected", "retired"
QUARANTINED = "quarantined"
"""It was trained on rows that were erased: it serves nobody until a lead has decided."""
TRANSITIONS: Table = {
    CANDIDATE: frozenset({APPROVED, REJECTED, QUARANTINED}),
    APPROVED: frozenset({RETIRED, QUARANTINED}),
    QUARANTINED: frozenset({CANDIDATE, APPROVED, RETIRED}),
    REJECTED: frozenset(),
    RETIRED: frozenset(),
}


class Adapter(models.Model):
    """A name that versions hang on. Lower case, digits and dashes: it is part of the name that engines
    see."""

    id = IdField("ad")
    workspace = models.ForeignKey(Workspace, models.PROTECT, related_name="adapters")
    name = models.SlugField(max_length=60)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["workspace", "name"], name="adapter_name_unique_in_workspace")
        ]

    def __str__(self) -> str:
        return self.name


class AdapterVersion(models.Model):
    """An immutable LoRA artefact: the digest is the sha256 of its manifest."""

    id = IdField("av")
    adapter = models.ForeignKey(Adapter, models.PROTECT, related_name="versions")
    number = models.PositiveIntegerField()
    digest = models.CharField(max_length=64, unique=True)
    serving_name = models.CharField(max_length=90, unique=True)
    """`<adapter>@<first 12 of digest>`"""
    run = models.OneToOneField(TrainingRun, models.PROTECT, related_name="version")
    manifest_body = models.JSONField()
    manifest_size = models.PositiveIntegerField()
    """Bytes of manifest.json, whose sha256 is the digest."""
    size = models.PositiveBigIntegerField()
    """Bytes of all files."""
    state = models.CharField(max_length=12, default=CANDIDATE)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["adapter", "number"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["adapter", "number"], name="adapter_version_number_unique"),
            models.CheckConstraint(
                condition=models.Q(state__in=list(TRANSITIONS)), name="adapter_version_state_known"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.adapter.name} v{self.number}"

    @property
    def manifest(self) -> AdapterManifest:
        return AdapterManifest.model_validate(self.manifest_body)
