"""The form of an app's API key, and its terms. Pure: the gateway uses this for every request."""

import secrets
import zlib
from dataclasses import dataclass
from datetime import datetime

from stillhouse.core.secrets import digest

_MARK = "sk-sh-"
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: nothing that reads as something else
_PREFIX_CHARS, _RANDOM_CHARS, _CHECKSUM_CHARS = 8, 32, 6
_LENGTH = len(_MARK) + _PREFIX_CHARS + 1 + _RANDOM_CHARS + _CHECKSUM_CHARS

INFERENCE, MODELS, TRAINING = "inference", "models", "training"
SCOPES = (INFERENCE, MODELS, TRAINING)
"""What a key may be for: asking models; listing them; uploading data and starting runs, as its maker."""
APP_SCOPES = (INFERENCE, MODELS)
"""What an app's key is for unless more was said."""


@dataclass(frozen=True)
class KeyTerms:
    """What a key may do, how much of it, and until when. None: no limit."""

    scopes: frozenset[str] = frozenset(APP_SCOPES)
    expires_at: datetime | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Prompt and completion together."""
    monthly_tokens: int | None = None
    """Budget of a calendar month in UTC."""
    local_only: bool = False
    """Its requests never leave the site, whatever an alias allows."""


@dataclass(frozen=True)
class NewKey:
    """A key just made. `secret` exists here and in its owner's hands only."""

    secret: str
    prefix: str
    digest: str


def make_key() -> NewKey:
    """A key `sk-sh-<8 prefix>-<32 random><6 checksum>`: 160 random bits behind a prefix that may be shown."""
    prefix, random = _random(_PREFIX_CHARS), _random(_RANDOM_CHARS)
    body = f"{_MARK}{prefix}-{random}"
    secret = body + _checksum(body)
    return NewKey(secret, prefix, digest_of(secret))


def digest_of(secret: str) -> str:
    """HMAC-SHA256 as 64 hexadecimal characters: what the database keeps."""
    return digest("api-key", secret)


def looks_valid(secret: str) -> bool:
    """Whether the form and the checksum are right: a typing error is caught without asking the database."""
    return (
        len(secret) == _LENGTH
        and secret.isascii()
        and secret.startswith(_MARK)
        and secret[-_CHECKSUM_CHARS:] == _checksum(secret[:-_CHECKSUM_CHARS])
    )


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    return "".join(_ALPHABET[(number >> (5 * place)) & 31] for place in range(_CHECKSUM_CHARS))
