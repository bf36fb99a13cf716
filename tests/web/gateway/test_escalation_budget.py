"""What a larger model elsewhere may cost: set aside before it is asked, by all gateways together."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

from django.utils import timezone

from stillhouse.publishing.escalation import start_escalation
from stillhouse.publishing.models import Alias
from stillhouse.usage.models import EscalationHold, UsageHour, UsageRecord
from tests.waiting import wait_for
from tests.web.gateway.cable import Cable
from tests.web.gateway.elsewhere import ASK, SCHEMA, ask, rows, terms
from tests.web.gateway.engine import Engine, Script
from tests.web.gateway.house import House, Serve, Serving, gateway_config, settle
from tests.web.gateway.process import kill_in_the_middle, uvicorn


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
