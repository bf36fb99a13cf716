"""Who is told of what, and how: a person's choice, a workspace's webhook, notices and their deliveries."""

from typing import ClassVar

from django.db import models

from stillhouse.accounts.models import Membership, User, Workspace
from stillhouse.core.ids import IdField


class EmailChoice(models.Model):
    """What a member gets by e-mail; without one, what concerns the member."""

    ALL, MINE, NONE = "all", "mine", "none"

    membership = models.OneToOneField(
        Membership, models.CASCADE, primary_key=True, related_name="email_choice"
    )
    choice = models.CharField(max_length=5)

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=models.Q(choice__in=["all", "mine", "none"]), name="email_choice_known"
            )
        ]


class Webhook(models.Model):
    """Where a workspace's notices are posted to, signed."""

    workspace = models.OneToOneField(Workspace, models.CASCADE, primary_key=True, related_name="webhook")
    url = models.URLField(max_length=300)
    secret = models.TextField()
    """Sealed: it signs every message, so it cannot be kept as a digest."""
    changed_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    changed_at = models.DateTimeField(auto_now=True)


class Notice(models.Model):
    """Something that happened, once."""

    id = IdField("msg")
    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="notices")
    key = models.CharField(max_length=160)
    """What happened to what, and which time: nobody is told twice of the same."""
    event = models.CharField(max_length=40)
    """`run.ended`, `approval.asked` or `test`."""
    subject = models.CharField(max_length=40)
    """Id of the run or version."""
    title = models.CharField(max_length=300)
    body = models.JSONField()
    """Ids, names and states. Never a prompt, a row or a log line."""
    path = models.CharField(max_length=200)
    """Of the page about it."""
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["workspace", "key"], name="notice_once")]


class Delivery(models.Model):
    """A notice on its way to one mailbox or webhook."""

    EMAIL, WEBHOOK = "email", "webhook"
    WAITING, SENT, FAILED = "waiting", "sent", "failed"

    notice = models.ForeignKey(Notice, models.CASCADE, related_name="deliveries")
    channel = models.CharField(max_length=8)
    to = models.CharField(max_length=300)
    """Mail address, or the webhook's address as it was then."""
    state = models.CharField(max_length=8, default=WAITING)
    attempts = models.PositiveSmallIntegerField(default=0)
    due_at = models.DateTimeField()
    error = models.CharField(max_length=200, blank=True)
    """Why the last attempt failed."""
    ended_at = models.DateTimeField(null=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["notice", "channel", "to"], name="delivered_once")
        ]
        indexes: ClassVar = [
            models.Index(fields=["due_at"], condition=models.Q(state="waiting"), name="deliveries_waiting")
        ]
