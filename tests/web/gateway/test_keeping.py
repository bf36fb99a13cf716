"""Prompts and answers: not kept unless a lead says so, kept as they were, gone when their time is over."""

import json
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from stillhouse.accounts.grants import make_grant
from stillhouse.audit.models import AuditEvent
from stillhouse.core.errors import NotFound, UserError
from stillhouse.gateway.keeping import MOST_CHARACTERS
from stillhouse.jobs.keeper import chores
from stillhouse.publishing.actions import publish
from stillhouse.publishing.keeping import start_keeping, stop_keeping
from stillhouse.publishing.models import Alias
from stillhouse.usage.kept import forget_expired, kept_of
from stillhouse.usage.models import KeptExchange, UsageRecord
from tests.waiting import wait_for
from tests.web.gateway.engine import Script
from tests.web.gateway.house import House, Serving, settle

ASK: Any = [{"role": "user", "content": "Which clause is this? \x00 😀"}]
THOUGHT = '<think>\nIt speaks of fees.\n</think>\n\n{"type": "payment"}'


def ask(serving: Serving, secret: str, times: int = 1, **fields: Any) -> None:
    before = UsageRecord.objects.count()
    with serving.client(secret) as client:
        for _ in range(times):
            answer = client.chat.completions.create(model="clauses", messages=ASK, **fields)
            if fields.get("stream"):
                assert list(answer)
    wait_for(lambda: UsageRecord.objects.count() == before + times)


def test_nothing_is_kept_by_default(house: House, stable: Alias, serving: Serving) -> None:
    ask(serving, house.secret)
    assert not KeptExchange.objects.exists()


def test_an_exchange_is_kept_as_it_was(house: House, stable: Alias, serving: Serving) -> None:
    start_keeping(by=house.lead, alias=stable, days=3)
    settle(serving)
    house.engine.script = Script(text=THOUGHT)
    ask(serving, house.secret, n=2)
    ask(serving, house.secret, stream=True)
    streamed, whole = kept_of(house.lead, "clauses")
    answer = {"content": '{"type": "payment"}', "reasoning": "It speaks of fees.\n"}
    assert json.loads(whole.answers) == [answer, answer] and json.loads(streamed.answers) == [answer]
    assert json.loads(whole.prompt) == ASK
    assert whole.expires_at - whole.at == timedelta(days=3)
    assert UsageRecord.objects.filter(pk=whole.pk, served=whole.served).exists()


def test_what_failed_or_is_too_long_is_counted_and_not_kept(
    house: House, stable: Alias, serving: Serving
) -> None:
    start_keeping(by=house.lead, alias=stable, days=3)
    settle(serving)
    house.engine.script = Script(text="x" * MOST_CHARACTERS, piece=10_000)
    ask(serving, house.secret)
    house.engine.script = Script(break_after=1, text="Hello there")
    with serving.client(house.secret) as client, pytest.raises(Exception):  # noqa: B017 - whatever the client says
        list(client.chat.completions.create(model="clauses", messages=ASK, stream=True))
    wait_for(lambda: UsageRecord.objects.count() == 2)
    assert not KeptExchange.objects.exists()


def test_evaluations_are_not_kept(house: House, stable: Alias, serving: Serving) -> None:
    start_keeping(by=house.lead, alias=stable, days=3)
    settle(serving)
    grant = make_grant(workspace_id=house.lead.workspace_id, caller="job_1", models=["clauses"], seconds=60)
    ask(serving, grant)
    assert not KeptExchange.objects.exists()


def test_the_keeper_removes_what_has_expired(house: House, stable: Alias, serving: Serving) -> None:
    start_keeping(by=house.lead, alias=stable, days=30)
    settle(serving)
    ask(serving, house.secret, 2)
    old = kept_of(house.lead, "clauses")[0]
    long_ago = timezone.now() - timedelta(days=10)
    KeptExchange.objects.filter(pk=old.pk).update(at=long_ago)
    assert forget_expired() == 0 and forget_expired in [chore.do for chore in chores()]
    start_keeping(by=house.lead, alias=stable, days=7)  # shorter: it holds for what is there, too
    assert [one.pk for one in kept_of(house.lead, "clauses")] != [old.pk] and forget_expired() == 1
    stop_keeping(by=house.lead, alias=stable)
    assert not kept_of(house.lead, "clauses").exists() and forget_expired() == 1
    settle(serving)
    ask(serving, house.secret)
    assert not KeptExchange.objects.exists()
    actions = AuditEvent.objects.filter(action__startswith="alias.keeping").values_list("action", flat=True)
    assert list(actions) == ["alias.keeping_on", "alias.keeping_on", "alias.keeping_off"]


def test_another_workspace_sees_and_changes_nothing(house: House, stable: Alias, serving: Serving) -> None:
    start_keeping(by=house.lead, alias=stable, days=3)
    settle(serving)
    ask(serving, house.secret)
    assert kept_of(house.lead, "clauses").count() == 1
    assert not kept_of(house.outsider, "clauses").exists()
    with pytest.raises(NotFound):
        start_keeping(by=house.outsider, alias=stable, days=1)
    with pytest.raises(NotFound):
        stop_keeping(by=house.outsider, alias=stable)
    with pytest.raises(UserError) as refused:
        start_keeping(by=house.expert, alias=stable, days=3)
    assert refused.value.code == "not_allowed"
    for days in (0, 366):
        with pytest.raises(UserError) as refused:
            start_keeping(by=house.lead, alias=stable, days=days)
        assert refused.value.code == "bad_days"


def test_one_alias_is_kept_and_another_is_not(house: House, stable: Alias, serving: Serving) -> None:
    version = house.approved("second-try")
    other = publish(by=house.lead, alias_name="other", version=version).alias
    start_keeping(by=house.lead, alias=other, days=3)
    settle(serving)
    ask(serving, house.secret)
    assert not KeptExchange.objects.exists()
