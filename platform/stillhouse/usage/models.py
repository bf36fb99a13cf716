"""What was served: one record per request, without its content."""

from typing import ClassVar

from django.db import models

from stillhouse.accounts.models import Workspace
from stillhouse.core.ids import IdField


class UsageRecord(models.Model):
    """One request through the gateway. Prompts and answers are not kept."""

    id = IdField("req")
    """The request id that the app saw as `x-request-id`."""
    workspace = models.ForeignKey(Workspace, models.PROTECT, related_name="+")
    caller = models.CharField(max_length=40)
    """Id of the API key, or of the person or job a grant was made for."""
    model = models.CharField(max_length=160)
    """As the app asked: alias, base, or immutable version name."""
    served = models.CharField(max_length=160, blank=True)
    """What answered: the version's immutable name, or the base."""
    at = models.DateTimeField()
    status = models.PositiveSmallIntegerField()
    prompt_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0)
    first_token_ms = models.FloatField(null=True)
    total_ms = models.FloatField()
    finish_reason = models.CharField(max_length=30, blank=True)
    cancelled = models.BooleanField(default=False)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["workspace", "-at"])]
