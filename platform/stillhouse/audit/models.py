"""The trail: append-only, and chained by hash within each workspace so that a gap or a change shows."""

from typing import ClassVar

from django.db import models

from stillhouse.accounts.models import User, Workspace


class AuditEvent(models.Model):
    """One thing somebody did. A database trigger refuses UPDATE and DELETE."""

    workspace = models.ForeignKey(Workspace, models.PROTECT, related_name="audit_events")
    sequence = models.PositiveBigIntegerField()
    at = models.DateTimeField()
    actor = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    """None when the platform itself acted (a keeper, a worker's finish)."""
    actor_name = models.CharField(max_length=200)
    action = models.CharField(max_length=60)
    """Dotted: `run.started`, `version.approved`."""
    object_id = models.CharField(max_length=60)
    object_name = models.CharField(max_length=200, blank=True)
    details = models.JSONField(default=dict)
    previous_hash = models.CharField(max_length=64)
    hash = models.CharField(max_length=64)

    class Meta:
        ordering: ClassVar = ["workspace", "sequence"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["workspace", "sequence"], name="audit_sequence_unique"),
        ]
        indexes: ClassVar = [models.Index(fields=["workspace", "object_id"])]
