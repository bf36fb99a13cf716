"""The gateway's limits and time-outs, with the reasons for their defaults."""

from dataclasses import dataclass
from typing import Self

from django.conf import settings

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class GatewayConfig:
    database_url: str
    max_body_bytes: int = 8 * MEBIBYTE
    """Of a request. A context of 128k tokens is about half a megabyte of text."""
    body_seconds: float = 60.0
    """How long a client may take to send its body."""
    read_seconds: float = 1.0
    """Between two full reads of the snapshot. Bounds how late a revocation acts when its NOTIFY is lost."""
    database_seconds: float = 5.0
    """Longest time one exchange with Postgres may take before the connection counts as dead."""
    connect_seconds: float = 5.0
    """To open a connection to an engine."""
    silence_seconds: float = 600.0
    """How long an engine may stay silent: an answer that does not stream says nothing until it is whole."""
    keep_alive_seconds: float = 4.0
    """Of idle connections to engines. vLLM's server closes them after 5 s; we have to be first."""
    max_engine_connections: int = 1024
    ledger_rows: int = 20_000
    """Usage records that may wait in memory while Postgres is away."""

    @classmethod
    def from_settings(cls) -> Self:
        return cls(database_url=settings.DATABASE_URL)
