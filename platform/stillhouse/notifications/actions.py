"""Writes of notifications: the workspace's webhook, a member's mails, a message to try it."""

import base64
from secrets import token_bytes

from django.conf import settings
from django.db import transaction
from django.urls import reverse
from django.utils import timezone

from stillhouse.accounts.access import require
from stillhouse.accounts.models import Membership
from stillhouse.audit.actions import record
from stillhouse.core.errors import Conflict, UserError
from stillhouse.core.ids import new_id
from stillhouse.core.sealing import seal
from stillhouse.notifications.addresses import destination
from stillhouse.notifications.models import Delivery, EmailChoice, Notice, Webhook
from stillhouse.notifications.sending import SEALED_FOR, SECRET_PREFIX

_SECRET_BYTES = 32


def set_webhook(*, by: Membership, url: str) -> str:
    """Send the workspace's notices to `url` from now on; returns the new secret, which is not shown again.

    Raises UserError `not_allowed`, `bad_webhook_url`, `host_unknown` or `private_address`.
    """
    require(by, "notification.manage")
    url = url.strip()
    destination(url, settings.WEBHOOK_PRIVATE_HOSTS)
    secret = SECRET_PREFIX + base64.b64encode(token_bytes(_SECRET_BYTES)).decode()
    with transaction.atomic():
        Webhook.objects.update_or_create(
            workspace=by.workspace,
            defaults={"url": url, "secret": seal(SEALED_FOR, secret), "changed_by": by.user},
        )
        _record(by, "webhook.set", url)
    return secret


@transaction.atomic
def remove_webhook(*, by: Membership) -> None:
    """Send nothing there any more; what waits is given up. Harmless where there is none."""
    require(by, "notification.manage")
    webhook = Webhook.objects.filter(workspace=by.workspace).first()
    if webhook is not None:
        url = webhook.url
        webhook.delete()
        _record(by, "webhook.removed", url)


@transaction.atomic
def send_test(*, by: Membership) -> Notice:
    """Put a message on its way to the webhook. Raises Conflict `no_webhook`."""
    require(by, "notification.manage")
    webhook = Webhook.objects.filter(workspace=by.workspace).first()
    if webhook is None:
        raise Conflict("no_webhook", "There is no webhook to try.")
    notice = Notice.objects.create(
        workspace=by.workspace,
        key=new_id("test"),
        event="test",
        subject="",
        title=f"{by.user} tries the webhook of {by.workspace.name}"[:300],
        body={},
        path=reverse("notifications", args=[by.workspace.slug]),
    )
    Delivery.objects.create(notice=notice, channel=Delivery.WEBHOOK, to=webhook.url, due_at=timezone.now())
    return notice


def choose_emails(*, by: Membership, choice: str) -> None:
    """What the member gets by mail: `all`, `mine` or `none`. Raises UserError `bad_choice`."""
    if choice not in (EmailChoice.ALL, EmailChoice.MINE, EmailChoice.NONE):
        raise UserError("bad_choice", f"{choice[:20]!r} is no choice.", "choice", "Take all, mine or none.")
    EmailChoice.objects.update_or_create(membership=by, defaults={"choice": choice})


def _record(by: Membership, action: str, url: str) -> None:
    record(
        workspace=by.workspace,
        by=by.user,
        action=action,
        object_id=by.workspace.pk,
        object_name=by.workspace.name,
        details={"url": url},
    )
