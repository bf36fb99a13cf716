"""A larger model elsewhere: when it is asked, what it is sent, what it costs. A second engine plays it."""

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.conf import settings
from django.utils import timezone

from stillhouse.accounts.actions import change_key
from stillhouse.accounts.grants import make_grant
from stillhouse.audit.models import AuditEvent
from stillhouse.core.errors import NotFound, UserError
from stillhouse.gateway.judging import fits
from stillhouse.publishing.escalation import EscalationTerms, start_escalation, stop_escalation
from stillhouse.publishing.models import Alias, Escalation
from stillhouse.usage.models import EscalationHold, UsageHour, UsageRecord
from tests.waiting import wait_for
from tests.web.gateway.cable import Cable
from tests.web.gateway.engine import Engine, Script
from tests.web.gateway.house import House, Serve, Serving, gateway_config
from tests.web.gateway.process import kill_in_the_middle, uvicorn
from tests.web.gateway.test_shares import settle

ASK: Any = [{"role": "user", "content": "Which clause is this?"}]
SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "clause",
        "schema": {"type": "object", "required": ["type"], "properties": {"type": {"enum": ["fee", "term"]}}},
    },
}
TOO_LONG = {"error": {"message": "This model's maximum context length is 2048 tokens.", "code": 400}}
NO_TOOLS = {"error": {"message": '"auto" tool choice requires --enable-auto-tool-choice', "code": 400}}
TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CREDENTIAL = "sk-remote-very-secret"


@pytest.fixture
def remote() -> Iterator[Engine]:
    """Somebody else's service."""
    engine = Engine(models={"big"}, script=Script(text='{"type": "fee"}'))
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
def destinations(remote: Engine, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.setattr(settings, "ESCALATION_DESTINATIONS", [remote.url])
    return (remote.url,)


@pytest.fixture
def stable(house: House, alias: str) -> Alias:
    return Alias.objects.get(name=alias)


@pytest.fixture
def hybrid(
    house: House, stable: Alias, remote: Engine, destinations: tuple[str, ...], serve: Serve
) -> Serving:
    """A gateway of an alias that escalates for every hard reason and for the form."""
    start_escalation(by=house.lead, alias=stable, terms=terms(remote))
    return serve(gateway_config(destinations=destinations))


def terms(remote: Engine, **changes: Any) -> EscalationTerms:
    agreed = EscalationTerms(
        url=f"{remote.url}/v1",
        model="big",
        credential=CREDENTIAL,
        prompt_price=Decimal("2.5"),
        completion_price=Decimal("10"),
        monthly_budget=Decimal(50),
        reasons=("context", "tools", "format"),
        consent="No personal data in these contracts; agreed with legal.",
    )
    return replace(agreed, **changes)


def ask(
    serving: Serving, secret: str, headers: dict[str, str] | None = None, **fields: Any
) -> httpx.Response:
    return httpx.post(
        f"{serving.url}/v1/chat/completions",
        headers={"authorization": f"Bearer {secret}", **(headers or {})},
        json={"model": "clauses", "messages": ASK, **fields},
        timeout=20,
    )


def rows(count: int) -> list[UsageRecord]:
    wait_for(lambda: UsageRecord.objects.count() == count)
    return list(UsageRecord.objects.order_by("shadow"))


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


def test_nothing_is_spent_beyond_the_budget(
    house: House, stable: Alias, hybrid: Serving, remote: Engine
) -> None:
    house.engine.script = Script(text="no form")
    # Room for one answer of at most 4096 tokens at 10 per million, and its prompt; not for a second one.
    start_escalation(by=house.lead, alias=stable, terms=terms(remote, monthly_budget=Decimal("0.042")))
    settle(hybrid)
    remote.script = Script(text="{}" + " " * 200)
    first = ask(hybrid, house.secret, response_format={"type": "json_object"})
    second = ask(hybrid, house.secret, response_format={"type": "json_object"})
    assert first.headers["x-stillhouse-escalation"] == "format"
    assert second.headers["x-stillhouse-escalation"] == "refused; budget_used_up"
    assert second.json()["choices"][0]["message"]["content"] == "no form" and len(remote.seen) == 1
    rows(3)
    settle(hybrid)
    assert (
        "budget_used_up"
        in ask(hybrid, house.secret, response_format=SCHEMA).headers["x-stillhouse-escalation"]
    )
    short = ask(hybrid, house.secret, response_format=SCHEMA, max_tokens=100)  # there is room for this one
    assert short.headers["x-stillhouse-escalation"] == "format" and remote.seen[-1]["max_tokens"] == 100


def test_one_budget_for_all_gateways(
    house: House, stable: Alias, remote: Engine, destinations: tuple[str, ...], serve: Serve
) -> None:
    """Two gateways, ten requests at once, room for three answers: three go out, before any of them is in the
    ledger."""
    price = Decimal("0.042")  # 4096 tokens at 10 per million, and a prompt
    start_escalation(by=house.lead, alias=stable, terms=terms(remote, monthly_budget=3 * price))
    house.engine.script, remote.script = Script(text="no form"), Script(text="{}", pause=1.0)
    gateways = [serve(gateway_config(destinations=destinations)) for _ in range(2)]
    with ThreadPoolExecutor(10) as pool:
        answers = pool.map(
            lambda number: ask(gateways[number % 2], house.secret, response_format={"type": "json_object"}),
            range(10),
        )
        said = Counter(answer.headers["x-stillhouse-escalation"] for answer in answers)
    assert said == {"format": 3, "refused; budget_used_up": 7} and len(remote.seen) == 3
    rows(13)
    assert not EscalationHold.objects.exists()
    assert (
        ask(gateways[1], house.secret, response_format={"type": "json_object"}).headers[
            "x-stillhouse-escalation"
        ]
        == "format"
    ), "the costs have taken the place of what was set aside, and they are small"


def test_only_what_was_set_aside_lately_by_this_workspace_counts(
    house: House, stable: Alias, hybrid: Serving, remote: Engine
) -> None:
    now, much = timezone.now(), 10**15
    ours, theirs = house.lead.workspace, house.outsider.workspace
    EscalationHold.objects.create(
        workspace=ours, alias="clauses", amount=much, at=now - timedelta(hours=25)
    )  # of a gateway that never came back
    EscalationHold.objects.create(workspace=theirs, alias="clauses", amount=much, at=now)
    EscalationHold.objects.create(workspace=ours, alias="other", amount=much, at=now)
    house.engine.script = Script(text="no form")
    assert ask(hybrid, house.secret, response_format=SCHEMA).headers["x-stillhouse-escalation"] == "format"
    assert not EscalationHold.objects.filter(at__lt=now).exists()
    EscalationHold.objects.create(workspace=ours, alias="clauses", amount=much, at=now)
    refused = ask(hybrid, house.secret, response_format=SCHEMA).headers["x-stillhouse-escalation"]
    assert refused == "refused; budget_used_up"


def test_without_postgres_nothing_leaves(
    house: House, stable: Alias, remote: Engine, destinations: tuple[str, ...], serve: Serve
) -> None:
    start_escalation(by=house.lead, alias=stable, terms=terms(remote))
    house.engine.script = Script(text="no form")
    with Cable(gateway_config().database_url) as cable:
        serving = serve(gateway_config(destinations=destinations, database_url=cable.url, budget_seconds=0.5))
        assert (
            ask(serving, house.secret, response_format=SCHEMA).headers["x-stillhouse-version"] == "remote:big"
        )
        cable.cut()
        answer = ask(serving, house.secret, response_format=SCHEMA)
        assert answer.headers["x-stillhouse-escalation"] == "refused; budget_unknown"
        assert answer.json()["choices"][0]["message"]["content"] == "no form" and len(remote.seen) == 1
        cable.mend()
        wait_for(
            lambda: (
                ask(serving, house.secret, response_format=SCHEMA).headers["x-stillhouse-version"]
                == "remote:big"
            )
        )


def test_a_gateway_killed_over_an_escalation_leaves_its_row_and_its_cost(
    house: House, stable: Alias, remote: Engine, destinations: tuple[str, ...], tmp_path: Path
) -> None:
    start_escalation(by=house.lead, alias=stable, terms=terms(remote))
    house.engine.script = Script(text='{"type": "fe', finish="length")
    remote.script = Script(text="x" * 500, piece=1, pause=0.02)
    with uvicorn(SPOOL_DIR=str(tmp_path), ESCALATION_DESTINATIONS=destinations[0]) as server:
        kill_in_the_middle(
            server,
            headers={"authorization": f"Bearer {house.secret}"},
            body={"model": "clauses", "messages": ASK, "stream": True, "response_format": SCHEMA},
            patience=15,
        )
    wait_for(lambda: remote.aborted == 1)  # the remote model stops, too
    (hold,) = EscalationHold.objects.all()
    assert hold.amount > 4096 * 10_000, "still set aside: nobody knows yet what it came to"
    with uvicorn(SPOOL_DIR=str(tmp_path)):
        wait_for(lambda: UsageRecord.objects.count() == 2)
    killed, unseen = rows(2)
    assert (killed.id, killed.status, killed.served, killed.escalation) == (
        hold.id,
        0,
        "remote:big",
        "format",
    )
    assert 15 <= killed.completion_tokens <= remote.sent
    assert killed.cost == killed.prompt_tokens * 2_500 + killed.completion_tokens * 10_000
    assert (unseen.served, unseen.shadow, unseen.completion_tokens, unseen.cost) == (
        house.held[0].serving_name,
        True,
        12,
        0,
    )
    assert sum(UsageHour.objects.values_list("cost", flat=True)) == killed.cost
    assert not EscalationHold.objects.exists()


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


def test_a_destination_off_the_list_gets_nothing(
    house: House, stable: Alias, remote: Engine, destinations: tuple[str, ...], serve: Serve
) -> None:
    """The list of this gateway is another one than when the lead turned it on."""
    start_escalation(by=house.lead, alias=stable, terms=terms(remote))
    house.engine.script = Script(text="no form")
    answer = ask(
        serve(gateway_config(destinations=("https://elsewhere.example",))),
        house.secret,
        response_format=SCHEMA,
    )
    assert answer.headers["x-stillhouse-escalation"] == "refused; destination_not_allowed"
    assert remote.seen == []


def test_turned_off_it_is_off_from_the_next_request_on(
    house: House, stable: Alias, hybrid: Serving, remote: Engine
) -> None:
    stop_escalation(by=house.lead, alias=stable)
    settle(hybrid)
    house.engine.script = Script(status=400, body=TOO_LONG)
    assert ask(hybrid, house.secret).status_code == 400 and remote.seen == []
    assert Escalation.objects.get().credential == ""


def test_a_lead_turns_it_on_with_consent_and_the_trail_has_it(
    house: House, stable: Alias, remote: Engine, destinations: tuple[str, ...]
) -> None:
    start_escalation(by=house.lead, alias=stable, terms=terms(remote))
    event = AuditEvent.objects.get(action="alias.escalation_on")
    assert event.details["consent"].startswith("No personal data") and event.actor == house.lead.user
    kept = Escalation.objects.get()
    assert CREDENTIAL not in json.dumps(event.details) + kept.credential
    start_escalation(by=house.lead, alias=stable, terms=terms(remote, credential="", model="bigger"))
    assert Escalation.objects.get().credential == kept.credential


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"url": "https://evil.example/v1"}, "destination_not_allowed"),
    ({"url": "file:///etc/passwd"}, "destination_not_allowed"),
    ({"model": " "}, "bad_model"),
    ({"prompt_price": Decimal("0.0001")}, "bad_price"),
    ({"completion_price": Decimal(-1)}, "bad_price"),
    ({"monthly_budget": Decimal(0)}, "bad_budget"),
    ({"reasons": ()}, "bad_reason"),
    ({"reasons": ("mood",)}, "bad_reason"),
    ({"consent": " "}, "consent_missing"),
    ({"credential": ""}, "credential_missing"),
]


def test_terms_that_say_too_little_are_refused(
    house: House, stable: Alias, remote: Engine, destinations: tuple[str, ...]
) -> None:
    for change, code in REFUSED:
        with pytest.raises(UserError) as refused:
            start_escalation(by=house.lead, alias=stable, terms=terms(remote, **change))
        assert refused.value.code == code and not Escalation.objects.exists(), change


def test_an_expert_an_outsider_and_a_site_without_destinations(
    house: House, stable: Alias, remote: Engine
) -> None:
    def code(by: Any) -> str:
        with pytest.raises(UserError) as refused:
            start_escalation(by=by, alias=stable, terms=terms(remote))
        return refused.value.code

    assert code(house.lead) == "escalation_unavailable"
    assert code(house.expert) == "not_allowed"
    with pytest.raises(NotFound):
        start_escalation(by=house.outsider, alias=stable, terms=terms(remote))
    with pytest.raises(NotFound):
        stop_escalation(by=house.outsider, alias=stable)


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
