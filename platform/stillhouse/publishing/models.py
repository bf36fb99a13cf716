"""Aliases, and which version each one answers with."""

from typing import ClassVar

from django.contrib.postgres.fields import ArrayField
from django.db import models

from stillhouse.accounts.models import User, Workspace
from stillhouse.adapters.models import AdapterVersion
from stillhouse.core.ids import IdField


class Alias(models.Model):
    """The stable name an app sends as `model`."""

    id = IdField("al")
    workspace = models.ForeignKey(Workspace, models.PROTECT, related_name="aliases")
    name = models.SlugField(max_length=60)
    created_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["workspace", "name"], name="alias_name_unique_in_workspace")
        ]

    def __str__(self) -> str:
        return self.name


class Publication(models.Model):
    """Append-only; the newest row of an alias counts. A rollback is a new row that points back."""

    PUBLISH, ROLLBACK, SHARES = "publish", "rollback", "shares"
    """SHARES: the version stays, and other versions get a part of the requests, or no longer do."""
    BY_USER, BY_REQUEST = "user", "request"

    id = IdField("pub")
    alias = models.ForeignKey(Alias, models.PROTECT, related_name="publications")
    sequence = models.PositiveIntegerField()
    version = models.ForeignKey(AdapterVersion, models.PROTECT, related_name="publications")
    """Answers what no share takes."""
    kind = models.CharField(max_length=10, default=PUBLISH)
    spread = models.CharField(max_length=10, default=BY_USER)
    """How a request finds its share: always the same for one `user` (or key, without one), or by lot."""
    created_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["alias", "sequence"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["alias", "sequence"], name="publication_sequence_unique")
        ]


class Share(models.Model):
    """A part of an alias's requests, as one publication has it. Append-only, as the publication is."""

    publication = models.ForeignKey(Publication, models.PROTECT, related_name="shares")
    version = models.ForeignKey(AdapterVersion, models.PROTECT, related_name="shares")
    percent = models.PositiveSmallIntegerField()
    shadow = models.BooleanField(default=False)
    """The requests are copied to the version and its answers thrown away; else it answers them (canary)."""

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["publication", "shadow"], name="one_canary_and_one_shadow"),
            models.CheckConstraint(
                condition=models.Q(shadow=False, percent__range=(1, 99))
                | models.Q(shadow=True, percent__range=(1, 100)),
                name="share_percent_possible",
            ),
        ]


class Escalation(models.Model):
    """A larger model elsewhere that an alias may ask where its own version cannot or should not answer.

    One row per alias, there once somebody has turned it on. Each change is an event of the audit trail, with
    the consent; turning it off removes the credential.
    """

    CONTEXT, TOOLS, FORMAT, CONFIDENCE = "context", "tools", "format", "confidence"
    REASONS = (CONTEXT, TOOLS, FORMAT, CONFIDENCE)
    """In the order in which they are looked at: the prompt is too long here; the engine takes no tools; the
    answer does not have the form the request asked for; it is less likely right than `threshold`."""

    alias = models.OneToOneField(Alias, models.PROTECT, primary_key=True, related_name="escalation")
    enabled = models.BooleanField(default=False)
    url = models.URLField(max_length=300)
    """Base URL with its /v1, as OpenAI's clients take it."""
    model = models.CharField(max_length=120)
    """As the remote service names it."""
    credential = models.TextField(blank=True)
    """Sealed (`core.sealing`); never shown again."""
    prompt_price = models.PositiveBigIntegerField()
    completion_price = models.PositiveBigIntegerField()
    """Of a token, in billionths of the currency's unit (thousandths per million tokens)."""
    monthly_budget = models.PositiveBigIntegerField()
    """Of a calendar month in UTC, in billionths of the currency's unit."""
    reasons = ArrayField(models.CharField(max_length=20))
    threshold = models.FloatField(default=0, db_default=0)
    """Probability of being right, by the evaluation of the version, below which an answer is not kept."""
    consent = models.TextField()
    """In the words of the person who turned it on."""
    changed_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    changed_at = models.DateTimeField(auto_now=True)


class Keeping(models.Model):
    """Prompts and answers of this alias are kept. There is a row while they are; changes are audited."""

    alias = models.OneToOneField(Alias, models.PROTECT, primary_key=True, related_name="keeping")
    days = models.PositiveSmallIntegerField()
    """How long each one is kept."""
    changed_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    changed_at = models.DateTimeField(auto_now=True)
