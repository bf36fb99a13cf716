"""The usage page: sums by key, alias and version, of one's own workspace; and the terms of keys."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from stillhouse.accounts.actions import change_key, create_key, revoke_key
from stillhouse.accounts.keys import KeyTerms
from stillhouse.accounts.models import ApiKey
from stillhouse.audit.models import AuditEvent
from stillhouse.core.errors import NotFound, UserError
from stillhouse.usage.models import UsageHour
from stillhouse.usage.queries import series, tokens_this_month, totals
from tests.world import World

pytestmark = pytest.mark.django_db


def hour(world: World, caller: str = "key_1", *, ago: timedelta = timedelta(), **fields: Any) -> UsageHour:
    """An hour of usage, of the workspace `acme` unless told otherwise."""
    begin = (timezone.now() - ago).replace(minute=0, second=0, microsecond=0)
    values: dict[str, Any] = {
        "workspace": world.lead.workspace,
        "hour": begin,
        "caller": caller,
        "key": caller if caller.startswith("key_") else "",
        "alias": "clauses",
        "served": "clauses@1",
        "shadow": False,
        "requests": 2,
        "failed": 1,
        "cancelled": 0,
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "reasoning_tokens": 3,
        "total_ms": 40.0,
    }
    return UsageHour.objects.create(**{**values, **fields})


def test_totals_add_up_by_each_grouping(world: World) -> None:
    hour(world)
    hour(world, "usr_1", alias="", served="base")
    hour(world, ago=timedelta(days=2), served="clauses@2")
    hour(world, ago=timedelta(days=40))
    by_key = {row.name: row.requests for row in totals(world.lead, days=7, group="key")}
    assert by_key == {"key_1": 4, "usr_1": 2}
    by_alias = {row.name: row.tokens for row in totals(world.lead, days=7, group="alias")}
    assert by_alias == {"clauses": 30, "": 15}
    assert {row.name for row in totals(world.lead, days=7, group="version")} == {
        "clauses@1",
        "clauses@2",
        "base",
    }
    [row] = totals(world.lead, days=1, group="alias")[:1]
    assert (row.requests, row.failed, row.mean_ms, row.reasoning_tokens) == (2, 1, 20.0, 3)


@pytest.mark.parametrize(("days", "steps"), [(1, 24), (7, 7), (30, 30)])
def test_a_plot_has_every_step_and_every_token(world: World, days: int, steps: int) -> None:
    hour(world)
    hour(world, served="clauses@2", requests=5)
    times, [line] = series(world.lead, days=days, group="alias", names=["clauses"])
    assert len(times) == len(line.requests) == len(line.tokens) == steps
    assert line.requests[-1] == 7 and sum(line.requests) == 7
    assert sum(line.tokens) == 30


def test_shadow_copies_stand_apart_and_cost_no_key(world: World) -> None:
    hour(world)
    hour(world, served="clauses@9", shadow=True, requests=99)
    text = world.client(world.expert).get("/w/acme/usage/?by=version").content.decode()
    assert "99 requests" in text and "Shadow copies" in text
    assert [row.name for row in totals(world.lead, days=7, group="version")] == ["clauses@1"]
    assert tokens_this_month(world.lead) == {"key_1": 15}


def test_the_page_shows_a_key_by_its_name_and_nothing_of_others(world: World) -> None:
    key, _ = create_key(by=world.lead, name="Contract assistant")
    hour(world, key.pk)
    hour(world, "key_9", workspace=world.outsider.workspace, alias="their-alias", served="theirs@1")
    client = world.client(world.expert)
    answer = client.get("/w/acme/usage/?by=key&days=1", headers={"accept": "application/json"}).json()
    assert [row["label"] for row in answer["totals"]] == ["Contract assistant"]
    for group in ("key", "alias", "version"):
        text = client.get(f"/w/acme/usage/?by={group}").content.decode()
        assert "theirs" not in text and "their-alias" not in text and "key_9" not in text
    theirs = world.client(world.outsider).get("/w/globex/usage/").content.decode()
    assert "their-alias" in theirs and "Contract assistant" not in theirs
    assert client.get("/w/acme/usage/?by=x&days=-1").status_code == 200


def test_a_key_is_made_with_its_terms_on_the_page_and_changed_there(world: World) -> None:
    client = world.client(world.lead)
    form = {
        "name": "App",
        "scopes": "inference",
        "expires_on": "2999-01-31",
        "requests_per_minute": "60",
        "tokens_per_minute": "10 000",
        "monthly_tokens": "1,000,000",
    }
    assert client.post("/w/acme/keys/", form).status_code == 200
    key = ApiKey.objects.get()
    assert (key.scopes, key.requests_per_minute, key.tokens_per_minute) == (["inference"], 60, 10_000)
    assert key.monthly_tokens == 1_000_000
    assert key.expires_at is not None and key.expires_at.isoformat() == "2999-01-31T23:59:59+00:00"
    hour(world, key.pk, prompt_tokens=700_000, completion_tokens=5)
    assert "700,005 of 1,000,000 tokens this month" in client.get("/w/acme/keys/").content.decode()
    assert client.post(f"/w/acme/keys/{key.pk}/", {"scopes": "models"}).status_code == 302
    key.refresh_from_db()
    assert key.terms == KeyTerms(scopes=frozenset({"models"}))
    event = AuditEvent.objects.get(action="key.changed")
    assert event.object_id == key.pk and event.details["scopes"] == ["models"]


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("requests_per_minute", "0", "bad_limit"),
        ("requests_per_minute", "many", "bad_limit"),
        ("tokens_per_minute", "-5", "bad_limit"),
        ("monthly_tokens", "9" * 19, "bad_limit"),
        ("expires_on", "2020-01-01", "bad_expiry"),
        ("expires_on", "2020-02-31", "bad_expiry"),
        ("expires_on", "soon", "bad_expiry"),
        ("scopes", "", "bad_scope"),
        ("scopes", "inference admin", "bad_scope"),
    ],
)
def test_terms_that_cannot_be_kept_are_refused(world: World, field: str, value: str, code: str) -> None:
    answer = world.client(world.lead).post(
        "/w/acme/keys/", {"name": "App", field: value}, headers={"accept": "application/json"}
    )
    assert answer.status_code == 400 and answer.json()["error"]["code"] == code
    assert not ApiKey.objects.exists()


def test_only_a_lead_of_the_workspace_changes_a_key_that_lives(world: World) -> None:
    key, _ = create_key(by=world.lead, name="App")
    with pytest.raises(NotFound):
        change_key(by=world.outsider, key=key, terms=KeyTerms())
    with pytest.raises(UserError, match="you may not"):
        change_key(by=world.expert, key=key, terms=KeyTerms())
    revoke_key(by=world.lead, key=key)
    with pytest.raises(UserError) as caught:
        change_key(by=world.lead, key=key, terms=KeyTerms())
    assert caught.value.code == "key_revoked"
