"""Secrets that the platform itself has to send on, and so must be able to read again: sealed by AES-256-GCM
with a key derived from SECRET_KEY. A copy of the database alone opens none of them."""

import base64
from secrets import token_bytes

from Crypto.Cipher import AES

from stillhouse.core.secrets import derived_key

_NONCE_BYTES, _TAG_BYTES = 12, 16


class CannotOpen(ValueError):
    """SECRET_KEY has changed since this was sealed, or somebody has changed what was sealed."""


def seal(purpose: str, secret: str) -> str:
    """The secret as URL-safe text that `unseal` opens for the same purpose; never twice the same."""
    nonce = token_bytes(_NONCE_BYTES)
    cipher = AES.new(derived_key(f"seal:{purpose}"), AES.MODE_GCM, nonce=nonce)
    body, tag = cipher.encrypt_and_digest(secret.encode())
    return base64.urlsafe_b64encode(nonce + tag + body).decode()


def unseal(purpose: str, sealed: str) -> str:
    """The secret; raises CannotOpen."""
    try:
        raw = base64.urlsafe_b64decode(sealed)
        nonce, rest = raw[:_NONCE_BYTES], raw[_NONCE_BYTES:]
        cipher = AES.new(derived_key(f"seal:{purpose}"), AES.MODE_GCM, nonce=nonce)
        return cipher.decrypt_and_verify(rest[_TAG_BYTES:], rest[:_TAG_BYTES]).decode()
    except ValueError as error:
        raise CannotOpen("this secret cannot be opened with today's SECRET_KEY") from error
