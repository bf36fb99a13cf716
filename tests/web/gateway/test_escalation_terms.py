"""Who turns escalation on, on what terms, to where; and off again."""

import json
from decimal import Decimal
from typing import Any

import pytest

from stillhouse.audit.models import AuditEvent
from stillhouse.core.errors import NotFound, UserError
from stillhouse.publishing.escalation import start_escalation, stop_escalation
from stillhouse.publishing.models import Alias, Escalation
from tests.web.gateway.elsewhere import CREDENTIAL, SCHEMA, TOO_LONG, ask, terms
from tests.web.gateway.engine import Engine, Script
from tests.web.gateway.house import House, Serve, Serving, gateway_config, settle


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
