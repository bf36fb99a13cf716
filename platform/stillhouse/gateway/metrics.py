"""What an operator watches, in Prometheus's format. No label has a value that an app or a person makes up:
endpoint, status, kind of token, reason and our own codes of errors are all there is."""

from collections.abc import Callable
from time import monotonic

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stillhouse.gateway.cold import ColdVersions
from stillhouse.gateway.ledger import Ledger
from stillhouse.gateway.link import DatabaseLink
from stillhouse.gateway.shadow import Shadows
from stillhouse.gateway.usage import Record

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
OTHER = "other"
"""The endpoint of what is none."""


class Metrics:
    """One process's figures."""

    def __init__(self, link: DatabaseLink, ledger: Ledger, shadows: Shadows, cold: ColdVersions) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "stillhouse_gateway_requests",
            "Requests by endpoint and HTTP status; 499: the app left first.",
            ["endpoint", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "stillhouse_gateway_request_seconds",
            "From the request's head to the end of its answer.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._first_token = Histogram(
            "stillhouse_gateway_first_token_seconds",
            "Of streams: from the request's head to the first piece of text.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._tokens = Counter(
            "stillhouse_gateway_tokens",
            "Tokens of requests by kind; reasoning is a part of completion.",
            ["kind"],
            registry=self._registry,
        )
        self._escalations = Counter(
            "stillhouse_gateway_escalations",
            "Requests that a remote model answered, by reason.",
            ["reason"],
            registry=self._registry,
        )
        self._refusals = Counter(
            "stillhouse_gateway_refusals",
            "Requests that ended in an error, by its code; files and fine-tuning jobs only where the gateway "
            "did not let them by.",
            ["code"],
            registry=self._registry,
        )
        self.in_flight = Gauge(
            "stillhouse_gateway_in_flight", "Requests being answered.", registry=self._registry
        )
        self._watch(
            "postgres_up", "1 while Postgres answers; at 0 the last snapshot serves.", lambda: link.connected
        )
        self._watch(
            "snapshot_age_seconds",
            "Since the last read of keys, aliases and replicas. NaN before the first.",
            lambda: monotonic() - link.read_at if link.read_at else float("nan"),
        )
        self._watch(
            "ledger_waiting_bytes", "Usage records that Postgres has not taken.", lambda: ledger.bytes_waiting
        )
        self._watch("ledger_lost", "Usage records given up since the start.", lambda: ledger.lost)
        self._watch(
            "shadows_dropped",
            "Shadow copies not made since the start, for want of room.",
            lambda: shadows.dropped,
        )

        self._watch("cold_waiting", "Requests that wait for a version to be loaded.", lambda: cold.waiting)

    def _watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        Gauge(f"stillhouse_gateway_{name}", what, registry=self._registry).set_function(value)

    def count(self, endpoint: str, record: Record) -> None:
        """A request has ended."""
        self._requests.labels(endpoint, str(record.status)).inc()
        self._seconds.labels(endpoint).observe(record.total_ms / 1000)
        if record.first_token_ms is not None:
            self._first_token.observe(record.first_token_ms / 1000)
        if record.code:
            self.refused(record.code)
        if record.escalation:
            self._escalations.labels(record.escalation).inc()
        for kind, number in (
            ("prompt", record.prompt_tokens),
            ("completion", record.completion_tokens),
            ("reasoning", record.reasoning_tokens),
        ):
            if number:
                self._tokens.labels(kind).inc(number)

    def refused(self, code: str) -> None:
        """A request ended in this error, one of ours."""
        self._refusals.labels(code).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)
