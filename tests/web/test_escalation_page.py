"""The escalation of an alias on its page: off without a destination, on with consent, its figures."""

import pytest
from django.conf import settings
from django.test import Client
from django.utils import timezone

from stillhouse.accounts.models import ApiKey
from stillhouse.adapters.models import AdapterVersion
from stillhouse.evaluations.actions import queue_evaluation, record_result
from stillhouse.publishing.actions import publish
from stillhouse.publishing.models import Alias, Escalation, Keeping
from stillhouse.usage.models import UsageHour, UsageRecord
from tests.registry import approved, evaluation_rows, make_ready, sha, summary_of
from tests.world import World

pytestmark = pytest.mark.django_db

FORM = {
    "url": "https://models.example/v1",
    "model": "big",
    "credential": "sk-remote-secret",
    "prompt_price": "2.5",
    "completion_price": "10",
    "monthly_budget": "50",
    "reasons": ["context", "format"],
    "consent": "No personal data in it.",
    "agreed": "yes",
}


@pytest.fixture
def alias(world: World) -> Alias:
    version = approved(world.expert, world.lead)
    make_ready(version)
    return publish(by=world.lead, alias_name="clauses", version=version).alias


@pytest.fixture
def destinations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "ESCALATION_DESTINATIONS", ["https://models.example"])


def page(client: Client) -> str:
    return client.get("/w/acme/aliases/").content.decode()


def send(client: Client, alias: Alias, **changes: object) -> int:
    answer = client.post(f"/w/acme/aliases/{alias.pk}/escalation/", {**FORM, **changes})
    return answer.status_code


def test_without_a_destination_the_page_says_so_and_nothing_turns_it_on(world: World, alias: Alias) -> None:
    client = world.client(world.lead)
    assert "the operator has named no destination" in page(client)
    assert send(client, alias) == 403 and not Escalation.objects.exists()


def test_on_with_consent_and_off_again(world: World, alias: Alias, destinations: None) -> None:
    client = world.client(world.lead)
    assert send(client, alias, agreed="") == 400 and not Escalation.objects.exists()
    assert send(client, alias) == 302
    shown = page(client)
    assert "May ask" in shown and "https://models.example/v1" in shown
    assert "sk-remote-secret" not in shown and Escalation.objects.get().credential not in shown
    assert send(client, alias, stop="1") == 302
    assert "May ask" not in page(client)


def test_an_expert_sees_it_and_may_not_change_it(world: World, alias: Alias, destinations: None) -> None:
    assert send(world.client(world.lead), alias) == 302
    expert = world.client(world.expert)
    shown = page(expert)
    assert "May ask" in shown and "Keep everything here" not in shown and "name=&quot;credential" not in shown
    assert send(expert, alias, stop="1") == 403 and Escalation.objects.get().enabled


def test_the_months_share_and_costs(world: World, alias: Alias, destinations: None) -> None:
    send(world.client(world.lead), alias)
    now, workspace = timezone.now(), world.lead.workspace
    sums = {"failed": 0, "cancelled": 0, "reasoning_tokens": 0, "total_ms": 1.0, "shadow": False}
    for served, requests, escalated, cost in (("v@1", 9, 0, 0), ("remote:big", 1, 1, 35_000_000)):
        UsageHour.objects.create(
            workspace=workspace,
            hour=now.replace(minute=0, second=0, microsecond=0),
            caller="key_1",
            alias="clauses",
            served=served,
            requests=requests,
            escalated=escalated,
            cost=cost,
            prompt_tokens=10_000,
            completion_tokens=1_000,
            **sums,
        )
    UsageRecord.objects.create(
        workspace=workspace,
        caller="key_1",
        model="clauses",
        alias="clauses",
        served="remote:big",
        at=now,
        status=200,
        total_ms=1,
        escalation="format",
    )
    shown = page(world.client(world.lead))
    assert "90 %" in shown and "9 of 10 requests this month" in shown and "1 for format" in shown
    assert "0.0350" in shown
    assert "0.0700" in shown  # 20,000 tokens at 2.50 and 2,000 at 10 per million


def test_each_threshold_is_shown_with_what_it_would_have_done(
    world: World, alias: Alias, destinations: None
) -> None:
    client = world.client(world.lead)
    assert "at least 30 rows" in page(client)
    rows = [
        row.model_copy(
            update={"adapter": row.adapter.model_copy(update={"margin": 0.9 - 0.2 * (row.index % 5)})}
        )
        for row in evaluation_rows([False] * 40, [index % 5 < 3 for index in range(40)])
    ]
    version = AdapterVersion.objects.get()
    evaluation = queue_evaluation(version=version)
    record_result(evaluation=evaluation, summary=summary_of(rows), rows=rows, rows_sha256=sha(evaluation.id))
    shown = page(client)
    assert "on the 40 evaluation rows" in shown and "24 of 24" in shown and "at least 30 rows" not in shown
    assert send(client, alias, reasons=["confidence"], threshold="no") == 400
    assert send(client, alias, reasons=["confidence"], threshold="0,75") == 302
    assert Escalation.objects.get().threshold == 0.75


def test_prompts_are_kept_from_the_page_and_no_more(world: World, alias: Alias) -> None:
    client, address = world.client(world.lead), f"/w/acme/aliases/{alias.pk}/keeping/"
    assert client.post(address, {"days": "many"}).status_code == 400
    assert client.post(address, {"days": "14"}).status_code == 302
    assert "14 days" in page(client) and Keeping.objects.get().days == 14
    expert = world.client(world.expert)
    assert "14 days" in page(expert) and expert.post(address, {"stop": "1"}).status_code == 403
    assert client.post(address, {"stop": "1"}).status_code == 302
    assert not Keeping.objects.exists()


def test_a_key_is_marked_local_only_on_its_page(world: World) -> None:
    client = world.client(world.lead)
    client.post("/w/acme/keys/", {"name": "App", "local_only": "yes"})
    key = ApiKey.objects.get()
    assert key.local_only
    client.post(f"/w/acme/keys/{key.pk}/", {"scopes": "inference"})
    key.refresh_from_db()
    assert not key.local_only
