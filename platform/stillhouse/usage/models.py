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
    escalation = models.CharField(max_length=20, blank=True, default="", db_default="")
    """Why a remote model was asked; empty where the answer was made here."""
    prompt_price = models.PositiveBigIntegerField(default=0, db_default=0)
    completion_price = models.PositiveBigIntegerField(default=0, db_default=0)
    """Of a token, in billionths of the currency's unit: what the lead entered when it was asked."""
    cost = models.PositiveBigIntegerField(default=0, db_default=0)
    """In billionths of the currency's unit."""

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["workspace", "-at"]),
            models.Index(
                fields=["workspace", "alias", "at"],
                condition=~models.Q(escalation=""),
                name="usage_escalations",
            ),
        ]


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
    escalated = models.PositiveBigIntegerField(default=0, db_default=0)
    """Requests that a remote model was asked for."""
    cost = models.PositiveBigIntegerField(default=0, db_default=0)
    """Of those, in billionths of the currency's unit."""

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["workspace", "hour", "caller", "alias", "served", "shadow"], name="usage_hour_unique"
            )
        ]
        indexes: ClassVar = [models.Index(fields=["caller", "hour"])]


class EscalationHold(models.Model):
    """What the answer of a remote model that is being made may cost at most, set aside from its budget."""

    id = IdField("req")
    """Of its usage record, which takes the hold's place."""
    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="+")
    alias = models.CharField(max_length=60)
    amount = models.PositiveBigIntegerField()
    """In billionths of the currency's unit."""
    at = models.DateTimeField()

    class Meta:
        indexes: ClassVar = [models.Index(fields=["workspace", "alias"])]


class KeptExchange(models.Model):
    """A prompt and what answered it, of an alias whose workspace keeps them for a while."""

    id = IdField("req")
    """Of its usage record."""
    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="+")
    alias = models.CharField(max_length=60)
    served = models.CharField(max_length=160)
    """The version's immutable name, or the remote model."""
    prompt = models.TextField()
    """JSON: the messages, or the prompt of a text completion."""
    answers = models.TextField()
    """JSON: a list of {content, reasoning}, one for each choice. Calls of tools are not in it."""
    at = models.DateTimeField()
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["workspace", "alias", "-at"])]


class Feedback(models.Model):
    """What an app said about an answer it got. It counts beside the exchange it is about, and ends with it.

    It may be here before the exchange is: the two come by different gateways. Only by its usage record is it
    known that the answer went to this caller, so reads compare the two (`kept.feedback_on`).
    """

    UP, DOWN = "up", "down"

    request = models.CharField(max_length=40)
    """Id of the exchange, as the app gave it."""
    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="+")
    caller = models.CharField(max_length=40)
    """Id of the API key that said it."""
    rating = models.CharField(max_length=4, choices=[(UP, "good"), (DOWN, "bad")])
    correction = models.TextField(blank=True)
    """JSON: the answer as it should have been; empty where the app sent none."""
    at = models.DateTimeField(db_index=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["request", "workspace", "caller"], name="usage_feedback_once")
        ]
