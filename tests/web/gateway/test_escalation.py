"""A larger model elsewhere: when it is asked, what it is sent, what comes back. A second engine plays it."""

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from stillhouse.accounts.actions import change_key
from stillhouse.accounts.grants import make_grant
from stillhouse.gateway.judging import fits
from stillhouse.usage.models import UsageHour, UsageRecord
from tests.waiting import wait_for
from tests.web.gateway.elsewhere import ASK, CREDENTIAL, SCHEMA, TOO_LONG, ask, rows
from tests.web.gateway.engine import Engine, Script
from tests.web.gateway.house import House, Serving, settle

NO_TOOLS = {"error": {"message": '"auto" tool choice requires --enable-auto-tool-choice', "code": 400}}
TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def test_what_is_answered_well_here_never_leaves(house: House, hybrid: Serving, remote: Engine) -> None:
    house.engine.script = Script(text='{"type": "term"}')
    for stream in (False, True):
        answer = ask(hybrid, house.secret, response_format=SCHEMA, stream=stream)
        assert answer.status_code == 200 and "x-stillhouse-escalation" not in answer.headers
        assert answer.headers["x-stillhouse-version"] == house.held[0].serving_name
    assert remote.seen == []


def test_a_prompt_too_long_for_the_engine_goes_out(house: House, hybrid: Serving, remote: Engine) -> None:
    house.engine.script = Script(status=400, body=TOO_LONG)
    answer = ask(hybrid, house.secret, user="customer-7", top_k=5, temperature=0.5)
    assert answer.headers["x-stillhouse-escalation"] == "context"
    assert answer.json()["model"] == answer.headers["x-stillhouse-version"] == "remote:big"
    assert answer.json()["choices"][0]["message"]["content"] == '{"type": "fee"}'
    sent = {"messages": ASK, "temperature": 0.5, "max_completion_tokens": 4096, "model": "big"}
    assert remote.seen == [sent]
    assert remote.headers[0]["authorization"] == f"Bearer {CREDENTIAL}"
    assert house.secret not in json.dumps(remote.headers)
    (row,) = rows(1)
    assert (row.escalation, row.served, row.version, row.alias) == ("context", "remote:big", "", "clauses")
    assert (row.prompt_tokens, row.completion_tokens) == (7, 15)
    assert row.cost == 7 * 2_500 + 15 * 10_000  # billionths: 2.5 and 10 per million tokens
    assert row.id == answer.headers["x-stillhouse-request"]
    hour = UsageHour.objects.get()
    assert (hour.escalated, hour.cost) == (1, row.cost)


def test_tools_that_the_engine_refuses_go_out(house: House, hybrid: Serving, remote: Engine) -> None:
    house.engine.script = Script(status=400, body=NO_TOOLS)
    assert ask(hybrid, house.secret, tools=[TOOL]).headers["x-stillhouse-escalation"] == "tools"
    assert remote.seen[0]["tools"] == [TOOL]
    assert ask(hybrid, house.secret).status_code == 400  # the same words about a request without tools


def test_a_form_that_was_missed_goes_out_and_both_are_counted(
    house: House, hybrid: Serving, remote: Engine
) -> None:
    house.engine.script = Script(text='{"type": "fe', finish="length")
    for number, stream in enumerate((False, True), start=1):
        with hybrid.client(house.secret) as client:
            if stream:
                chunks = list(
                    client.chat.completions.create(
                        model="clauses", messages=ASK, response_format=SCHEMA, stream=True
                    )
                )
                content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            else:
                whole = client.chat.completions.create(model="clauses", messages=ASK, response_format=SCHEMA)
                content = whole.choices[0].message.content or ""
        assert content == '{"type": "fee"}'
        wait_for(lambda: UsageRecord.objects.count() == 2 * number)  # noqa: B023
    seen, unseen = UsageRecord.objects.filter(shadow=False), UsageRecord.objects.filter(shadow=True)
    assert {(row.served, row.escalation, row.completion_tokens) for row in seen} == {
        ("remote:big", "format", 15)
    }
    assert {(row.served, row.escalation, row.completion_tokens, row.cost) for row in unseen} == {
        (house.held[0].serving_name, "", 12, 0)
    }


def test_responses_go_out_too_and_text_completions_stay(
    house: House, hybrid: Serving, remote: Engine
) -> None:
    house.engine.script = Script(status=400, body=TOO_LONG)
    with hybrid.client(house.secret) as client:
        response = client.responses.create(model="clauses", input="Which clause is this?")
    assert (response.output_text, response.model) == ('{"type": "fee"}', "remote:big")
    answer = httpx.post(
        f"{hybrid.url}/v1/completions",
        headers={"authorization": f"Bearer {house.secret}"},
        json={"model": "clauses", "prompt": "Once"},
    )
    assert answer.json()["error"]["code"] == "context_length_exceeded" and len(remote.seen) == 1


def test_what_is_local_only_never_leaves(house: House, hybrid: Serving, remote: Engine) -> None:
    house.engine.script = Script(status=400, body=TOO_LONG)
    answer = ask(hybrid, house.secret, {"x-stillhouse-local-only": "1"})
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    change_key(by=house.lead, key=house.key, terms=replace(house.key.terms, local_only=True))
    settle(hybrid)
    assert ask(hybrid, house.secret).status_code == 400
    evaluation = make_grant(
        workspace_id=house.lead.workspace_id, caller="job_1", models=["clauses"], seconds=60
    )
    assert ask(hybrid, evaluation).status_code == 400
    assert remote.seen == []


def test_a_remote_model_that_fails_leaves_the_local_answer(
    house: House, hybrid: Serving, remote: Engine
) -> None:
    house.engine.script = Script(text="no form")
    remote.script = Script(status=500, body={"error": {"message": "secret of the remote"}})
    for stream in (False, True):
        answer = ask(hybrid, house.secret, response_format=SCHEMA, stream=stream)
        assert answer.status_code == 200 and "secret of the remote" not in answer.text
        assert answer.headers["x-stillhouse-escalation"] == "refused; remote_500"
        assert answer.headers["x-stillhouse-version"] == house.held[0].serving_name
    wait_for(lambda: UsageRecord.objects.count() == 4)
    failed = UsageRecord.objects.filter(escalation="format")
    assert {(row.status, row.cost, row.shadow) for row in failed} == {(502, 0, True)}
    assert {row.completion_tokens for row in UsageRecord.objects.filter(escalation="")} == {7}
    remote.stop()
    house.engine.script = Script(status=400, body=TOO_LONG)
    assert ask(hybrid, house.secret).json()["error"]["code"] == "context_length_exceeded"
    remote.start()


def test_a_remote_model_that_talks_nonsense_harms_nothing(
    house: House, hybrid: Serving, remote: Engine
) -> None:
    house.engine.script = Script(text="no form")
    answers: list[dict[str, Any]] = [{"choices": [{}]}, {"choices": 5}, {"choices": [{"message": None}]}]
    for nonsense in answers:
        remote.script = Script(status=200, body=nonsense)
        answer = ask(hybrid, house.secret, response_format=SCHEMA)
        assert answer.headers["x-stillhouse-escalation"] == "refused; remote_unreadable"
        assert answer.json()["choices"][0]["message"]["content"] == "no form"
    message = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "{}"}}]}
    remote.script = Script(
        status=200, body={**message, "usage": {"prompt_tokens": 10**30, "completion_tokens": "many"}}
    )
    assert ask(hybrid, house.secret, response_format=SCHEMA).status_code == 200
    remote.script = Script(status=200, body=message)  # says nothing of what it used
    assert ask(hybrid, house.secret, response_format=SCHEMA).status_code == 200
    wait_for(lambda: UsageRecord.objects.filter(served="remote:big", status=200).exists())
    assert hybrid.gateway.ledger.refused == 0
    assert all(row.cost > 0 for row in UsageRecord.objects.filter(served="remote:big", status=200))


def test_a_remote_stream_that_the_app_leaves_is_counted(
    house: House, hybrid: Serving, remote: Engine
) -> None:
    house.engine.script = Script(status=400, body=TOO_LONG)
    remote.script = Script(text="x" * 400, piece=4, pause=0.02)
    with httpx.stream(
        "POST",
        f"{hybrid.url}/v1/chat/completions",
        headers={"authorization": f"Bearer {house.secret}"},
        json={"model": "clauses", "messages": ASK, "stream": True},
    ) as answer:
        for _, _ in zip(range(5), answer.iter_lines(), strict=False):
            pass
    (row,) = rows(1)
    assert row.cancelled and row.escalation == "context" and row.cost > 0 and row.completion_tokens > 0
    wait_for(lambda: remote.aborted == 1)


@pytest.mark.parametrize(
    ("value", "schema", "expected"),
    [
        ({"a": 1}, {"type": "object", "required": ["a"]}, True),
        ({}, {"type": "object", "required": ["a"]}, False),
        ({"a": 1, "b": 2}, {"properties": {"a": {}}, "additionalProperties": False}, False),
        ([1, "x"], {"type": "array", "items": {"type": "integer"}}, False),
        (True, {"type": "integer"}, False),
        (2.0, {"type": "integer"}, True),
        (None, {"type": ["string", "null"]}, True),
        ("x", {"anyOf": [{"type": "integer"}, {"type": "string"}]}, True),
        (
            {"a": {"a": None}},
            {"$ref": "#/$defs/n", "$defs": {"n": {"properties": {"a": {"$ref": "#/$defs/n"}}}}},
            True,
        ),
        (1, {"$ref": "#"}, True),  # refers to itself and says nothing
        ("x", {"$ref": "https://evil.example/schema"}, True),  # never fetched
        ("x", {"enum": 5, "required": 3}, True),
    ],
)
def test_the_form_is_compared_without_surprises(value: Any, schema: Any, expected: bool) -> None:
    assert fits(value, schema) is expected
