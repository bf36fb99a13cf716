"""Keys for one purpose each, derived from SECRET_KEY, and digests of secrets that are not stored."""

import hmac
from functools import cache

from django.conf import settings


@cache
def derived_key(purpose: str) -> bytes:
    """32 bytes that differ for every purpose: a digest made for one is worthless for another."""
    return hmac.digest(settings.SECRET_KEY.encode(), f"stillhouse:{purpose}".encode(), "sha256")


def digest(purpose: str, secret: str) -> str:
    """HMAC-SHA256 of a secret as 64 hexadecimal characters: what the database keeps instead of the secret."""
    return hmac.digest(derived_key(purpose), secret.encode(), "sha256").hex()


def bearer_token(authorization: str) -> str:
    """The token of an Authorization header; empty where there is none or it is of another kind."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def same(left: str, right: str) -> bool:
    """Whether two secrets are equal, in a time that does not depend on where they differ."""
    return hmac.compare_digest(left.encode(), right.encode())
