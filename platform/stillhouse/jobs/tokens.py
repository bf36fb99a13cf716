"""Fencing tokens: each attempt of a job has its own, and only its HMAC is stored."""

import secrets

from stillhouse.core.secrets import digest


def token_of(job_id: str, attempt: int, key: str) -> str:
    """The token of an attempt: the same again for the same `key` of a claim, a new one without a key."""
    return digest("job-claim", f"{job_id}:{attempt}:{key}") if key else secrets.token_urlsafe(32)


def digest_of(token: str) -> str:
    return digest("job-token", token)
