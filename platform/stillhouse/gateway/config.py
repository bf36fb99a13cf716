"""The gateway's limits and time-outs, with the reasons for their defaults."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from django.conf import settings

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class GatewayConfig:
    database_url: str
    spool_dir: Path
    """Where usage records wait for Postgres. On a disk of this machine: its locks have to be real ones."""
    max_body_bytes: int = 8 * MEBIBYTE
    """Of a request. A context of 128k tokens is about half a megabyte of text."""
    body_seconds: float = 60.0
    """How long a client may take to send its body."""
    read_seconds: float = 1.0
    """Between two full reads of the snapshot. Bounds how late a revocation acts when its NOTIFY is lost."""
    copy_seconds: float = 1.0
    """Between two copies of the ledger's records to Postgres."""
    database_seconds: float = 5.0
    """Longest time one exchange with Postgres may take before the connection counts as dead."""
    budget_seconds: float = 2.0
    """Longest time the question for an escalation's budget may take; then the answer made here stays."""
    connect_seconds: float = 5.0
    """To open a connection to an engine."""
    silence_seconds: float = 600.0
    """How long an engine may stay silent: an answer that does not stream says nothing until it is whole."""
    keep_alive_seconds: float = 4.0
    """Of idle connections to engines. vLLM's server closes them after 5 s; we have to be first."""
    max_engine_connections: int = 1024
    cold_seconds: float = 8.0
    """How long a request waits for a version that is not loaded. Loading takes one to three seconds."""
    max_cold_requests: int = 256
    """Requests that wait so at a time."""
    max_shadows: int = 8
    """Shadow copies at a time. They take room on the engines that answer apps, so they are few."""
    tracing: bool = False
    """Make OpenTelemetry spans."""
    metrics_token: str = ""
    """What a reader of /metrics shows as its bearer token. Empty: there is no /metrics."""
    destinations: tuple[str, ...] = ()
    """Origins that prompts may be sent to, where an alias has an escalation; none: none ever is."""
    remote_seconds: float = 120.0
    """Longest silence of a remote model."""
    max_remote_tokens: int = 4096
    """Of an answer that a remote model is asked for; an app's own limit below it counts."""
    max_remote_connections: int = 64
    spool_bytes: int = 1024 * MEBIBYTE
    """Of usage records on disk while Postgres is away: some two and a half million. Then the oldest go."""
    unspooled_records: int = 20_000
    """Usage records that may wait in memory while the disk takes none."""

    @classmethod
    def from_settings(cls) -> Self:
        return cls(
            database_url=settings.DATABASE_URL,
            spool_dir=settings.SPOOL_DIR,
            metrics_token=settings.METRICS_TOKEN,
            tracing=settings.TRACING,
            destinations=tuple(settings.ESCALATION_DESTINATIONS),
        )
