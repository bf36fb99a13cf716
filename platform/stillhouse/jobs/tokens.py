"""Fencing tokens: each attempt of a job has its own, and only its HMAC is stored."""

import secrets

from stillhouse.core.secrets import digest


def new_token() -> str:
    return secrets.token_urlsafe(32)


def digest_of(token: str) -> str:
    return digest("job-token", token)
