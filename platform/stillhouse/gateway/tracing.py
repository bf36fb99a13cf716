"""OpenTelemetry spans: one for each request of an app, with nothing of what was asked or said.

Off unless TRACING is set. Only OpenTelemetry's API is used, and only then: which exporter gets the spans is
the operator's business, who starts the process under `opentelemetry-instrument`. The engine is handed the
`traceparent`, so that its own spans hang under ours.
"""

from collections.abc import Callable
from typing import Any

from stillhouse.gateway.usage import Record

Headers = dict[str, str]
End = Callable[[], None]

_TRACE_HEADERS = (b"traceparent", b"tracestate")


class TracingNotInstalled(RuntimeError):
    """TRACING is set and the packages are not there."""


class Tracing:
    """Makes spans, or does nothing."""

    def __init__(self, *, enabled: bool, provider: Any = None) -> None:
        """`provider`: an OpenTelemetry TracerProvider; by default the process's own."""
        self._tracer: Any = None
        if not enabled:
            return
        try:
            from opentelemetry import propagate, trace  # noqa: PLC0415  # absent where nobody traces
        except ImportError as error:
            raise TracingNotInstalled(
                "TRACING is set, but opentelemetry-api is not installed. Install opentelemetry-distro and an "
                "exporter, and start the process under `opentelemetry-instrument`; or unset TRACING."
            ) from error
        self._propagate, self._kind = propagate, trace.SpanKind.SERVER
        self._in_context, self._status = trace.set_span_in_context, trace.StatusCode.ERROR
        self._tracer = trace.get_tracer("stillhouse.gateway", tracer_provider=provider)

    def begin(
        self, record: Record, endpoint: str, received: list[tuple[bytes, bytes]]
    ) -> tuple[Headers, End]:
        """Headers for the engine, and what ends the span once the record is complete."""
        if self._tracer is None:
            return {}, _nothing
        carrier = {
            name.decode(): value.decode("latin-1") for name, value in received if name in _TRACE_HEADERS
        }
        context = self._propagate.extract(carrier)
        span = self._tracer.start_span(endpoint, context=context, kind=self._kind)
        sent: Headers = {}
        self._propagate.inject(sent, self._in_context(span))

        def end() -> None:
            span.set_attributes(_attributes(record))
            if record.status >= 500 or record.status == 0:
                span.set_status(self._status, record.code)
            span.end()

        return sent, end


def _nothing() -> None:
    """The end of no span."""


def _attributes(record: Record) -> dict[str, str | int | float | bool]:
    """As OpenTelemetry's conventions for generative models name them, where they do."""
    found: dict[str, str | int | float | bool] = {
        "gen_ai.request.model": record.model,
        "gen_ai.response.model": record.served,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "http.response.status_code": record.status,
        "stillhouse.request": record.id,
        "stillhouse.workspace": record.workspace_id,
        "stillhouse.alias": record.alias,
        "stillhouse.reasoning_tokens": record.reasoning_tokens,
        "stillhouse.finish_reason": record.finish_reason,
        "stillhouse.cancelled": record.cancelled,
    }
    if record.first_token_ms is not None:
        found["stillhouse.first_token_ms"] = record.first_token_ms
    if record.code:
        found["error.type"] = record.code
    return found
