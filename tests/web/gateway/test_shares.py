"""Canaries and shadows: which version answers a request, and which one only sees a copy."""

from collections import Counter
from typing import Any

from stillhouse.adapters.models import AdapterVersion
from stillhouse.publishing.actions import end_canary, publish, rollback, start_canary, start_shadow
from stillhouse.publishing.models import Alias
from stillhouse.usage.models import UsageHour, UsageRecord
from tests.waiting import wait_for
from tests.web.gateway.engine import Script
from tests.web.gateway.house import House, Serve, Serving, gateway_config, settle

ASK: Any = [{"role": "user", "content": "Which clause is this?"}]
USERS = [f"user-{number}" for number in range(200)]


def answering(serving: Serving, house: House, alias: Alias, users: list[str]) -> dict[str, str]:
    """Which version each user got."""
    with serving.client(house.secret) as client:
        return {
            user: client.chat.completions.create(model=alias.name, messages=ASK, user=user).model
            for user in users
        }


def share(answers: dict[str, str], version: AdapterVersion) -> float:
    return Counter(answers.values())[version.serving_name] / len(answers)


def test_a_canary_grows_to_everything_and_goes_back(house: House, stable: Alias, serving: Serving) -> None:
    old, new = house.held[0], house.approved("second-try")
    start_canary(by=house.lead, alias=stable, version=new, percent=10)
    settle(serving)
    tenth = answering(serving, house, stable, USERS)
    assert 0.03 < share(tenth, new) < 0.19 and share(tenth, old) + share(tenth, new) == 1
    assert answering(serving, house, stable, USERS[:40]) == {user: tenth[user] for user in USERS[:40]}
    start_canary(by=house.lead, alias=stable, version=new, percent=50)
    settle(serving)
    half = answering(serving, house, stable, USERS)
    assert 0.38 < share(half, new) < 0.62
    assert all(half[user] == new.serving_name for user in USERS if tenth[user] == new.serving_name)
    start_canary(by=house.lead, alias=stable, version=new, percent=100)
    settle(serving)
    assert share(answering(serving, house, stable, USERS[:30]), new) == 1
    rollback(by=house.lead, alias=stable)
    settle(serving)
    assert share(answering(serving, house, stable, USERS[:30]), old) == 1


def test_without_a_user_the_key_decides_and_by_request_the_lot(
    house: House, stable: Alias, serving: Serving
) -> None:
    new = house.approved("second-try")
    start_canary(by=house.lead, alias=stable, version=new, percent=50)
    settle(serving)
    with serving.client(house.secret) as client:

        def names(times: int) -> set[str]:
            return {
                client.chat.completions.create(model=stable.name, messages=ASK).model for _ in range(times)
            }

        assert len(names(20)) == 1
        start_canary(by=house.lead, alias=stable, version=new, percent=50, spread="request")
        settle(serving)
        assert len(names(40)) == 2


def test_a_canary_that_no_replica_holds_leaves_its_part_to_the_other(
    house: House, stable: Alias, serving: Serving
) -> None:
    old, new = house.held[0], house.approved("second-try")
    start_canary(by=house.lead, alias=stable, version=new, percent=99)
    house.held.remove(new)
    house.report()
    settle(serving)
    assert share(answering(serving, house, stable, USERS[:30]), old) == 1
    end_canary(by=house.lead, alias=stable)


def test_a_shadow_sees_a_copy_and_nobody_sees_its_answer(
    house: House, stable: Alias, serving: Serving
) -> None:
    old, new = house.held[0], house.approved("second-try")
    house.engine.script = Script(text="<think>Hm</think>abc", piece=3)
    start_shadow(by=house.lead, alias=stable, version=new, percent=100)
    settle(serving)
    with serving.client(house.secret) as client:
        chunks = list(client.chat.completions.create(model=stable.name, messages=ASK, stream=True))
    assert {chunk.model for chunk in chunks} == {old.serving_name}
    wait_for(lambda: UsageRecord.objects.count() == 2)
    copy = UsageRecord.objects.get(shadow=True)
    assert (copy.served, copy.version, copy.alias) == (new.serving_name, new.id, stable.name)
    assert (copy.status, copy.completion_tokens, copy.key) == (200, 20, house.key.id)
    assert UsageHour.objects.get(shadow=True).requests == 1
    bodies = {body["model"]: body for body in house.engine.seen}
    assert bodies[new.serving_name]["messages"] == ASK and "stream" not in bodies[new.serving_name]


def test_there_are_never_more_shadows_than_may_be(house: House, stable: Alias, serve: Serve) -> None:
    serving = serve(gateway_config(max_shadows=1))
    new = house.approved("second-try")
    start_shadow(by=house.lead, alias=stable, version=new, percent=100)
    settle(serving)
    slow = Script(pause=0.5)
    house.engine.slow = {new.serving_name: slow}
    assert share(answering(serving, house, stable, USERS[:10]), house.held[0]) == 1
    assert serving.gateway.shadows.dropped == 9
    publish(by=house.lead, alias_name=stable.name, version=new)
