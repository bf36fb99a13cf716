"""What was served: a record per request, without its content, and its sums by the hour."""

from typing import ClassVar

from django.db import models

from stillhouse.accounts.models import Workspace
from stillhouse.core.ids import IdField


class UsageRecord(models.Model):
    """One request through the gateway. Prompts and answers are not kept."""

    id = IdField("req")
    """The request id of the gateway: what makes copying a record twice harmless."""
    workspace = models.ForeignKey(Workspace, models.PROTECT, related_name="+")
    caller = models.CharField(max_length=40)
    """Id of the API key, or of the person or job a grant was made for."""
    key = models.CharField(max_length=40, blank=True, default="")
    """Id of the API key; empty for a grant."""
    model = models.CharField(max_length=160)
    """As the app asked: alias, base, or immutable version name."""
    alias = models.CharField(max_length=60, blank=True, default="")
    """The alias that chose the version; empty where the app named version or base."""
    served = models.CharField(max_length=160, blank=True)
    """What answered: the version's immutable name, or the base."""
    version = models.CharField(max_length=40, blank=True, default="")
    """Id of the adapter version; empty for a base."""
    shadow = models.BooleanField(default=False)
    """A copy whose answer nobody saw."""
    at = models.DateTimeField()
    status = models.PositiveSmallIntegerField()
    """HTTP status; 499 when the app left before the answer began, 0 when the gateway died over it."""
    prompt_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0)
    """Reasoning and answer together."""
    reasoning_tokens = models.PositiveIntegerField(default=0)
    """As the engine counts them, or chunk by chunk in a stream, or else by the share of characters."""
    first_token_ms = models.FloatField(null=True)
    total_ms = models.FloatField()
    finish_reason = models.CharField(max_length=30, blank=True)
    cancelled = models.BooleanField(default=False)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["workspace", "-at"])]


class UsageHour(models.Model):
    """Sums of the records of one hour. Kept by the statement that copies records in, so the two agree."""

    workspace = models.ForeignKey(Workspace, models.PROTECT, related_name="+")
    hour = models.DateTimeField()
    """Its beginning, in UTC."""
    caller = models.CharField(max_length=40)
    key = models.CharField(max_length=40, blank=True)
    alias = models.CharField(max_length=60, blank=True)
    served = models.CharField(max_length=160, blank=True)
    version = models.CharField(max_length=40, blank=True)
    shadow = models.BooleanField()
    requests = models.PositiveBigIntegerField()
    failed = models.PositiveBigIntegerField()
    """Answered with an error, or not at all because the gateway died."""
    cancelled = models.PositiveBigIntegerField()
    prompt_tokens = models.PositiveBigIntegerField()
    completion_tokens = models.PositiveBigIntegerField()
    reasoning_tokens = models.PositiveBigIntegerField()
    total_ms = models.FloatField()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["workspace", "hour", "caller", "alias", "served", "shadow"], name="usage_hour_unique"
            )
        ]
        indexes: ClassVar = [models.Index(fields=["caller", "hour"])]
