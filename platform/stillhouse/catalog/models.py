"""Bases one may train on."""

from typing import ClassVar

from django.db import models

from workers.contract import ThinkContract
from workers.contract.estimate import BaseShape


class BaseModel(models.Model):
    """A pinned base. The rows come from `catalog.bases`; it is available where its weights were added."""

    id = models.CharField(primary_key=True, max_length=80)
    """Lower-case name such as `qwen3-0.6b`; the name the base is served under."""
    name = models.CharField(max_length=120)
    hub_id = models.CharField(max_length=160)
    revision = models.CharField(max_length=80, blank=True)
    """Commit on the hub, where one is pinned. Empty: what was added is pinned by `digest` alone."""
    licence = models.CharField(max_length=80)
    parameters = models.PositiveBigIntegerField()
    context_length = models.PositiveIntegerField()
    think = models.JSONField()
    """ThinkContract."""
    lora_targets = models.JSONField()
    max_rank = models.PositiveIntegerField(default=64)
    description = models.CharField(max_length=300, blank=True)

    path = models.CharField(max_length=500, blank=True)
    """Folder of the weights on this site; empty until they are added."""
    digest = models.CharField(max_length=64, blank=True)
    template_sha256 = models.CharField(max_length=64, blank=True)
    shape_body = models.JSONField(null=True, blank=True)
    """BaseShape, read when the weights were added; None until then."""
    added_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["parameters", "id"]

    def __str__(self) -> str:
        return self.name

    @property
    def available(self) -> bool:
        return bool(self.digest)

    @property
    def shape(self) -> BaseShape | None:
        return BaseShape.model_validate(self.shape_body) if self.shape_body else None

    @property
    def think_contract(self) -> ThinkContract:
        return ThinkContract.model_validate(self.think)
