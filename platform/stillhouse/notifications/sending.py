"""One attempt at a delivery: a mail, or a signed POST after the Standard Webhooks specification.

The receiver verifies `webhook-signature` over `id.timestamp.body`, refuses timestamps that are minutes away
from its own clock, and remembers ids: that is what makes a repeated message harmless. The id of a notice is
the same in every attempt.
"""

import base64
import hmac
import json
import time
from typing import Any

import urllib3
from django.conf import settings
from django.core.mail import send_mail
from django.urls import reverse

from stillhouse.core.sealing import CannotOpen, unseal
from stillhouse.notifications.addresses import Destination, destination
from stillhouse.notifications.models import Delivery, Notice, Webhook

SEALED_FOR = "webhook"
SECRET_PREFIX = "whsec_"
_TIMEOUT = urllib3.Timeout(connect=5, read=10)
_MAIL_ERROR = "the mail server did not take it"


class NotDelivered(Exception):
    """Why, in a few words; `final` when another attempt would end the same."""

    def __init__(self, why: str, *, final: bool = False) -> None:
        super().__init__(why)
        self.final = final


def send(delivery: Delivery) -> None:
    """Raises NotDelivered, or UserError for an address that is not allowed any more."""
    if delivery.channel == Delivery.EMAIL:
        _mail(delivery)
    else:
        _post(delivery)


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """`v1,` and the HMAC-SHA256 of a message, in base64. `secret` is `whsec_` and base64."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


def body_of(notice: Notice) -> dict[str, Any]:
    """What a webhook receives."""
    return {
        "type": notice.event,
        "timestamp": notice.created_at.isoformat(),
        "data": {
            "title": notice.title,
            "url": _absolute(notice.path),
            "workspace": notice.workspace.slug,
            **notice.body,
        },
    }


def _absolute(path: str) -> str:
    return settings.STILLHOUSE_URL.rstrip("/") + path


def _mail(delivery: Delivery) -> None:
    notice = delivery.notice
    text = (
        f"{notice.title}\n\n{_absolute(notice.path)}\n\n"
        f"You get this as a member of {notice.workspace.name}; choose what you get at "
        f"{_absolute(reverse('notifications', args=[notice.workspace.slug]))}\n"
    )
    subject = " ".join(f"[Stillhouse] {notice.title}".split())
    try:
        send_mail(subject, text, settings.DEFAULT_FROM_EMAIL, [delivery.to])
    except OSError as error:  # smtplib's errors are OSErrors
        raise NotDelivered(f"{_MAIL_ERROR} ({type(error).__name__})") from error


def _post(delivery: Delivery) -> None:
    notice = delivery.notice
    webhook = Webhook.objects.filter(workspace=notice.workspace_id, url=delivery.to).first()
    if webhook is None:
        raise NotDelivered("the webhook was changed or removed", final=True)
    to = destination(webhook.url, settings.WEBHOOK_PRIVATE_HOSTS)
    body = json.dumps(body_of(notice), separators=(",", ":")).encode()
    stamp = int(time.time())
    try:
        signed = signature(unseal(SEALED_FOR, webhook.secret), notice.id, stamp, body)
    except CannotOpen as error:
        raise NotDelivered("its secret cannot be opened: SECRET_KEY has changed", final=True) from error
    headers = {
        "Host": to.host if to.port in (80, 443) else f"{to.host}:{to.port}",
        "Content-Type": "application/json",
        "User-Agent": "Stillhouse",
        "webhook-id": notice.id,
        "webhook-timestamp": str(stamp),
        "webhook-signature": signed,
    }
    try:
        with _pool(to) as pool:
            answer = pool.request(
                "POST",
                to.path,
                body=body,
                headers=headers,
                redirect=False,
                retries=False,
                preload_content=False,
            )
            status = answer.status
            answer.close()
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise NotDelivered(f"it could not be reached ({type(error).__name__})") from error
    if status == 410:
        raise NotDelivered("it answered 410: it wants no more", final=True)
    if not 200 <= status < 300:
        raise NotDelivered(f"it answered {status}")


def _pool(to: Destination) -> urllib3.HTTPConnectionPool:
    """Connects to the address that was checked; TLS is held to the name."""
    if to.scheme == "http":
        return urllib3.HTTPConnectionPool(to.address, to.port, timeout=_TIMEOUT)
    return urllib3.HTTPSConnectionPool(
        to.address,
        to.port,
        timeout=_TIMEOUT,
        cert_reqs="CERT_REQUIRED",
        server_hostname=to.host,
        assert_hostname=to.host,
    )
