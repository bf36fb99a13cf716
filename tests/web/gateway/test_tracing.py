"""Spans: one a request, within the app's trace, and nothing of what was asked or said."""

from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from stillhouse.gateway.tracing import Tracing
from tests.waiting import wait_for
from tests.web.gateway.engine import Script
from tests.web.gateway.house import House, Serving

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "the tenant owes nothing"


@pytest.fixture
def spans(serving: Serving) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    serving.gateway.tracing = Tracing(enabled=True, provider=provider)
    return exporter


def ask(serving: Serving, house: House, model: str, **fields: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {house.secret}", "traceparent": f"00-{TRACE}-{PARENT}-01"}
    body = {"model": model, "messages": [{"role": "user", "content": SECRET}], "user": "erin", **fields}
    return httpx.post(f"{serving.url}/v1/chat/completions", headers=headers, json=body, timeout=20)


@pytest.mark.parametrize("stream", [False, True])
def test_a_span_says_who_and_how_much_and_not_what(
    house: House, alias: str, serving: Serving, spans: InMemorySpanExporter, stream: bool
) -> None:
    house.engine.script = Script(text="a very private answer")
    answer = ask(serving, house, alias, stream=stream)
    wait_for(lambda: len(spans.get_finished_spans()) == 1)
    [span] = spans.get_finished_spans()
    said = dict(span.attributes or {})
    assert said["stillhouse.request"] == answer.headers["x-request-id"]
    assert said["gen_ai.response.model"] == house.held[0].serving_name
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (7, 21)
    assert (
        span.parent and f"{span.parent.span_id:016x}" == PARENT and f"{span.context.trace_id:032x}" == TRACE
    )
    assert house.engine.headers[0]["traceparent"] == f"00-{TRACE}-{span.context.span_id:016x}-01"
    assert SECRET not in span.to_json() and "private" not in span.to_json() and "erin" not in span.to_json()


def test_an_error_is_marked_and_a_refusal_is_not(
    house: House, alias: str, serving: Serving, spans: InMemorySpanExporter
) -> None:
    assert ask(serving, house, alias, temperature=9).status_code == 400
    house.engine.script = Script(status=500, body={"error": {"message": SECRET}})
    assert ask(serving, house, alias).status_code == 502
    wait_for(lambda: len(spans.get_finished_spans()) == 2)
    refused, failed = spans.get_finished_spans()
    assert refused.status.is_unset and not failed.status.is_ok and not failed.status.is_unset
    assert (failed.attributes or {})["error.type"] == "engine_error" and SECRET not in failed.to_json()


def test_without_the_setting_nothing_is_traced(house: House, alias: str, serving: Serving) -> None:
    assert ask(serving, house, alias).status_code == 200
    assert "traceparent" not in house.engine.headers[0]
