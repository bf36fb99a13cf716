"""Grants: signed, expiring permissions to call models, for the playground and for evaluation jobs.

Nothing is stored: the token says it all, and the signature makes it true. Pure functions, called per request.
"""

import base64
import binascii
import hmac
import json
import time
from dataclasses import dataclass

from stillhouse.core.secrets import derived_key

_MARK = "sg-"
_MAX_CHARS = 4096


@dataclass(frozen=True)
class Grant:
    """What a token allows: `models` by name, or, when None, whatever an app key of the workspace may call."""

    workspace_id: str
    caller: str
    """Id of the person or job it was made for; usage is recorded under it."""
    models: frozenset[str] | None
    expires_at: int
    """Seconds since the epoch."""


def make_grant(*, workspace_id: str, caller: str, models: list[str] | None, seconds: int) -> str:
    """A token `sg-<payload>.<signature>` that is good for `seconds` from now."""
    payload = {"w": workspace_id, "c": caller, "m": models, "e": int(time.time()) + seconds}
    body = _encode(json.dumps(payload, separators=(",", ":")).encode())
    return f"{_MARK}{body}.{_encode(_sign(body))}"


def read_grant(token: str) -> Grant | None:
    """The grant, or None when the token is not ours, was changed, or has expired."""
    body, dot, signature = token.removeprefix(_MARK).partition(".")
    if not token.startswith(_MARK) or not dot or len(token) > _MAX_CHARS or not token.isascii():
        return None
    if not hmac.compare_digest(_encode(_sign(body)), signature):
        return None
    try:
        payload = json.loads(_decode(body))
    except (ValueError, binascii.Error):
        return None
    if payload["e"] < time.time():
        return None
    models = payload["m"]
    return Grant(payload["w"], payload["c"], None if models is None else frozenset(models), payload["e"])


def _sign(body: str) -> bytes:
    return hmac.digest(derived_key("grant"), body.encode(), "sha256")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
