"""Objects on their way into the database."""

from typing import ClassVar

from django.db import models


class PendingObject(models.Model):
    """An object that reaches its content address before a row names it (`core.pending`)."""

    sha256 = models.CharField(max_length=64)
    holder = models.CharField(max_length=60)
    """Who brings it: an upload, or an attempt at a job."""
    workspace = models.CharField(max_length=40)
    since = models.DateTimeField()
    """When its holder last said so."""

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["sha256", "holder"], name="pending_once_for_each_holder")
        ]
        indexes: ClassVar = [models.Index(fields=["holder"]), models.Index(fields=["since"])]
