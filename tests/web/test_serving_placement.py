"""Which versions a replica should hold: pins, publications, recent use, and what its engine has room for."""

from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.db import connection
from django.utils import timezone

from stillhouse.accounts.models import Membership
from stillhouse.adapters.models import AdapterVersion
from stillhouse.audit.models import AuditEvent
from stillhouse.core.errors import NotFound, UserError
from stillhouse.publishing.actions import publish
from stillhouse.publishing.queries import live_version_ids
from stillhouse.serving.actions import (
    add_pool,
    drain_replica,
    forget_replica,
    pin_version,
    place_version,
    sync_pool,
)
from stillhouse.serving.models import Holding, Placement, Pool, Replica
from stillhouse.serving.queries import is_ready
from stillhouse.serving.use import want_version
from stillhouse.serving.wanted import ROLLBACK_WINDOW, WARM
from stillhouse.serving.wishes import WANT_VERSION
from stillhouse.usage.models import UsageHour
from tests.registry import POOL, approved, available_base, candidate, held, make_ready, pool_report
from tests.world import World, anybody

pytestmark = pytest.mark.django_db

LONG_AGO = WARM + timedelta(days=1)


def versions(by: Membership, count: int, *, age: timedelta = timedelta()) -> list[AdapterVersion]:
    """Candidates on the demonstration pool, the first the oldest, all of them `age` old at least."""
    add_pool(name=POOL, base=available_base())
    made = [candidate(by, adapter_name=f"clauses-{number}") for number in range(count)]
    for number, version in enumerate(made):
        place_version(version=version)
        at = timezone.now() - age - timedelta(minutes=count - number)
        AdapterVersion.objects.filter(pk=version.pk).update(created_at=at)
        Placement.objects.filter(version=version).update(created_at=at)
    return made


def wanted(capacity: int = 0, **changes: Any) -> list[str]:
    published = changes.pop("published", ())
    report = pool_report(capacity=capacity, **changes)
    return [item.name for item in sync_pool(pool_name=POOL, report=report, published=published).wanted]


def names(*made: AdapterVersion) -> list[str]:
    return [version.serving_name for version in made]


def use(version: AdapterVersion, *, hours_ago: int = 0, failed: int = 0) -> None:
    hour = timezone.now().replace(minute=0, second=0, microsecond=0) - timedelta(hours=hours_ago)
    UsageHour.objects.create(
        workspace=version.adapter.workspace,
        hour=hour,
        caller="key_1",
        alias="",
        served=version.serving_name,
        version=version.id,
        shadow=False,
        requests=1,
        failed=failed,
        cancelled=0,
        prompt_tokens=1,
        completion_tokens=1,
        reasoning_tokens=0,
        total_ms=1,
    )
    Pool.objects.update(use_noted_at=None)


def test_as_many_as_the_engine_has_room_for_the_newest_first(world: World) -> None:
    old, middle, new = versions(world.expert, 3)
    assert wanted() == names(new, middle, old), "an agent that does not say its room gets all"
    assert wanted(2) == names(new, middle)


def test_use_keeps_a_version_and_failures_do_not(world: World) -> None:
    first, second, third = versions(world.expert, 3, age=timedelta(days=1))
    use(first)
    use(second, failed=1)
    assert wanted(2) == names(first, third)


def test_use_is_counted_once_a_minute(world: World) -> None:
    first, second = versions(world.expert, 2, age=timedelta(days=1))
    assert wanted(1) == names(second)
    noted = Pool.objects.get().use_noted_at
    use(first)
    Pool.objects.update(use_noted_at=noted)
    assert wanted(1) == names(second)
    Pool.objects.update(use_noted_at=timezone.now() - timedelta(minutes=2))
    assert wanted(1) == names(first)


def test_what_nobody_touches_for_long_goes_cold_and_comes_back_when_asked_for(world: World) -> None:
    cold, other = versions(world.expert, 2, age=LONG_AGO)
    assert wanted() == []
    want_version(version=cold)
    assert wanted() == names(cold)
    with connection.cursor() as cursor:
        cursor.execute(WANT_VERSION, [other.id])
        assert cursor.rowcount == 1
        cursor.execute(WANT_VERSION, [other.id])
        assert cursor.rowcount == 0, "a flood of requests writes once a second"
    assert set(wanted()) == set(names(cold, other))


def test_the_one_asked_for_takes_the_place_of_the_least_used(world: World) -> None:
    made = versions(world.expert, 4)
    want_version(version=made[0])
    assert wanted(3) == names(made[0], made[3], made[2])


def test_pinned_and_published_versions_are_always_there(world: World) -> None:
    made = versions(world.expert, 4, age=LONG_AGO)
    pin_version(by=world.lead, version=made[1], pinned=True)
    pin_version(by=world.lead, version=made[1], pinned=True)
    assert set(wanted(1, published={made[0].id})) == set(names(made[0], made[1])), "beyond the room, too"
    assert [event.action for event in AuditEvent.objects.filter(action__contains="pinned")] == [
        "version.pinned"
    ]
    pin_version(by=world.lead, version=made[1], pinned=False)
    assert wanted(1, published={made[0].id}) == names(made[0])


def test_pins_are_for_leads_of_the_workspace_and_for_what_may_serve(world: World) -> None:
    [version] = versions(world.expert, 1)
    with pytest.raises(UserError) as caught:
        pin_version(by=world.expert, version=version, pinned=True)
    assert caught.value.code == "not_allowed"
    with pytest.raises(NotFound):
        pin_version(by=world.outsider, version=version, pinned=True)
    Placement.objects.all().delete()
    with pytest.raises(UserError) as caught:
        pin_version(by=world.lead, version=version, pinned=True)
    assert caught.value.code == "not_servable"


def synced() -> list[str]:
    """By HTTP, as an agent does: publications count there."""
    response = anybody().post(
        f"/worker/v1/pools/{POOL}/sync",
        data=pool_report(capacity=1).model_dump_json(),
        content_type="application/json",
        headers={"authorization": f"Bearer {settings.AGENT_TOKEN}"},
    )
    assert response.status_code == 200, response.content
    return [item["name"] for item in response.json()["wanted"]]


def test_what_was_published_stays_through_the_rollback_window(world: World) -> None:
    first = approved(world.expert, world.lead, adapter_name="one")
    second = approved(world.expert, world.lead, adapter_name="two")
    make_ready(first, second)
    publish(by=world.lead, alias_name="clauses", version=first)
    publish(by=world.lead, alias_name="clauses", version=second)
    for version in (first, second):
        past = timezone.now() - LONG_AGO
        AdapterVersion.objects.filter(pk=version.pk).update(created_at=past)
        Placement.objects.filter(version=version).update(created_at=past)
    assert set(synced()) == set(names(first, second))
    assert live_version_ids(since=timezone.now() - ROLLBACK_WINDOW) == {first.id, second.id}
    assert live_version_ids(since=timezone.now()) == {second.id}, "superseded before"


def test_nobody_is_sent_to_what_is_about_to_be_unloaded(world: World) -> None:
    old, new = versions(world.expert, 2)
    report = pool_report(held(old), held(new), capacity=1)
    sync_pool(pool_name=POOL, report=report)
    assert [holding.version for holding in Holding.objects.all()] == [new]
    assert not is_ready(old) and is_ready(new)


def test_a_hundred_versions_cost_one_report_few_queries(
    world: World, django_assert_max_num_queries: Any
) -> None:
    versions(world.expert, 3)
    wanted(2)
    with django_assert_max_num_queries(20):
        assert len(wanted(2)) == 2


def test_a_drained_replica_takes_no_requests_until_an_administrator_says_so(world: World) -> None:
    [version] = versions(world.expert, 1)
    sync_pool(pool_name=POOL, report=pool_report(held(version)))
    replica = Replica.objects.get()
    with pytest.raises(UserError):
        drain_replica(by=world.lead, replica=replica, draining=True)
    drain_replica(by=world.admin, replica=replica, draining=True)
    assert not is_ready(version)
    answer = sync_pool(pool_name=POOL, report=pool_report(held(version)))
    assert not is_ready(version), "its agent's reports do not undo it"
    assert [item.name for item in answer.wanted] == names(version), "it stays loaded"
    drain_replica(by=world.admin, replica=replica, draining=False)
    assert is_ready(version)
    actions = AuditEvent.objects.filter(action__startswith="replica.").order_by("sequence")
    assert [event.action for event in actions] == ["replica.drained", "replica.undrained"]


def test_an_agent_that_is_about_to_stop_drains_itself(world: World) -> None:
    [version] = versions(world.expert, 1)
    sync_pool(pool_name=POOL, report=pool_report(held(version), leaving=True))
    assert not is_ready(version)
    with pytest.raises(UserError) as caught:
        drain_replica(by=world.admin, replica=Replica.objects.get(), draining=False)
    assert caught.value.code == "agent_stops"
    sync_pool(pool_name=POOL, report=pool_report(held(version)))
    assert is_ready(version)


def test_only_a_silent_replica_can_be_forgotten(world: World) -> None:
    versions(world.expert, 1)
    wanted()
    with pytest.raises(UserError) as caught:
        forget_replica(by=world.admin, replica=Replica.objects.get())
    assert caught.value.code == "still_reporting"
    Replica.objects.update(reported_at=timezone.now() - timedelta(hours=1))
    with pytest.raises(UserError):
        forget_replica(by=world.lead, replica=Replica.objects.get())
    forget_replica(by=world.admin, replica=Replica.objects.get())
    assert not Replica.objects.exists()
