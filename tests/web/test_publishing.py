"""Aliases: publishing, rolling back, and the history in between."""

from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction

from stillhouse.adapters.models import AdapterVersion
from stillhouse.audit.models import AuditEvent
from stillhouse.core.errors import NotFound, UserError
from stillhouse.publishing.actions import publish, rollback
from stillhouse.publishing.models import Alias, Publication
from stillhouse.publishing.queries import (
    aliases,
    aliases_of,
    current_publication,
    get_alias,
    history,
    rollback_target,
)
from stillhouse.serving.actions import sync_pool
from tests.registry import DEMO_BASE, approved, at_once, candidate, held, make_ready, pool_report
from tests.world import World

pytestmark = pytest.mark.django_db


def ready_versions(world: World, count: int = 1) -> list[AdapterVersion]:
    made = [approved(world.expert, world.lead) for _ in range(count)]
    make_ready(*made)
    return made


def served(world: World, name: str = "clauses") -> AdapterVersion:
    publication = current_publication(get_alias(world.lead, name))
    assert publication is not None
    return publication.version


def refusal(by: Any, version: AdapterVersion, alias_name: str = "clauses") -> UserError:
    with pytest.raises(UserError) as caught:
        publish(by=by, alias_name=alias_name, version=version)
    assert not Publication.objects.exists() and not Alias.objects.exists()
    return caught.value


def test_a_lead_publishes_an_approved_version_that_is_ready(world: World) -> None:
    [version] = ready_versions(world)
    publication = publish(by=world.lead, alias_name="clauses", version=version)
    assert (publication.sequence, publication.kind) == (1, "publish")
    assert served(world) == version and [alias.name for alias in aliases_of(version)] == ["clauses"]
    event = AuditEvent.objects.get(action="alias.published")
    assert event.actor == world.lead.user and event.details["version"] == version.id


def test_publishing_what_is_published_changes_nothing(world: World) -> None:
    [version] = ready_versions(world)
    first = publish(by=world.lead, alias_name="clauses", version=version)
    assert publish(by=world.lead, alias_name="clauses", version=version) == first
    assert Publication.objects.count() == 1


def test_a_candidate_is_not_published(world: World) -> None:
    version = candidate(world.expert)
    make_ready(version)
    error = refusal(world.lead, version)
    assert (error.code, error.status) == ("model_not_approved", 403)


def test_a_version_that_no_replica_holds_is_not_published(world: World) -> None:
    version = approved(world.expert, world.lead)
    assert refusal(world.lead, version).code == "not_ready"
    make_ready(version)
    sync_pool(pool_name="demo", report=pool_report(held(version), healthy=False))
    assert refusal(world.lead, version).code == "not_ready"


def test_an_expert_may_not_publish_nor_roll_back(world: World) -> None:
    first, second = ready_versions(world, 2)
    assert refusal(world.expert, first).code == "not_allowed"
    publish(by=world.lead, alias_name="clauses", version=first)
    publish(by=world.lead, alias_name="clauses", version=second)
    with pytest.raises(UserError) as caught:
        rollback(by=world.expert, alias=get_alias(world.expert, "clauses"))
    assert caught.value.code == "not_allowed" and served(world) == second


@pytest.mark.parametrize("name", ["../x", "a@b", "a/b", "", "Clauses", "x" * 61, "a\0b", DEMO_BASE])
def test_an_alias_has_a_name_that_can_be_one(world: World, name: str) -> None:
    [version] = ready_versions(world)
    error = refusal(world.lead, version, alias_name=name)
    assert (
        error.code == ("name_taken_by_base" if name == DEMO_BASE else "bad_name") and error.place == "alias"
    )


def test_a_rollback_is_a_new_row_that_points_back(world: World) -> None:
    first, second = ready_versions(world, 2)
    for version in (first, second):
        publish(by=world.lead, alias_name="clauses", version=version)
    alias = get_alias(world.lead, "clauses")
    assert rollback_target(alias) == first
    publication = rollback(by=world.lead, alias=alias)
    assert (publication.sequence, publication.kind) == (3, "rollback")
    assert served(world) == first
    assert [row.version for row in history(alias)] == [first, second, first]


def test_rolling_back_twice_never_returns_to_what_was_rolled_back_from(world: World) -> None:
    first, second, third = ready_versions(world, 3)
    for version in (first, second, third):
        publish(by=world.lead, alias_name="clauses", version=version)
    alias = get_alias(world.lead, "clauses")
    assert rollback(by=world.lead, alias=alias).version == second
    assert rollback(by=world.lead, alias=alias).version == first
    with pytest.raises(UserError) as caught:
        rollback(by=world.lead, alias=alias)
    assert caught.value.code == "nothing_to_roll_back_to" and served(world) == first
    publish(by=world.lead, alias_name="clauses", version=third)
    assert rollback(by=world.lead, alias=alias).version == first


def test_a_rollback_passes_over_versions_that_may_no_longer_serve(world: World) -> None:
    first, second, third = ready_versions(world, 3)
    for version in (first, second, third):
        publish(by=world.lead, alias_name="clauses", version=version)
    AdapterVersion.objects.filter(pk=second.pk).update(state="retired")
    assert rollback(by=world.lead, alias=get_alias(world.lead, "clauses")).version == first


def test_a_rollback_to_what_is_not_loaded_is_refused(world: World) -> None:
    first, second = ready_versions(world, 2)
    for version in (first, second):
        publish(by=world.lead, alias_name="clauses", version=version)
    sync_pool(pool_name="demo", report=pool_report(held(second)))
    with pytest.raises(UserError) as caught:
        rollback(by=world.lead, alias=get_alias(world.lead, "clauses"))
    assert caught.value.code == "not_ready" and served(world) == second


def test_an_outsider_finds_nothing(world: World) -> None:
    [version] = ready_versions(world)
    with pytest.raises(NotFound):
        publish(by=world.outsider, alias_name="clauses", version=version)
    publish(by=world.lead, alias_name="clauses", version=version)
    alias = get_alias(world.expert, "clauses")
    for name in ("clauses", alias.id):
        with pytest.raises(NotFound):
            get_alias(world.outsider, name)
    with pytest.raises(NotFound):
        rollback(by=world.outsider, alias=alias)
    assert not aliases(world.outsider).exists()


def test_each_workspace_has_its_own_alias_of_a_name(world: World) -> None:
    [ours] = ready_versions(world)
    publish(by=world.lead, alias_name="clauses", version=ours)
    with pytest.raises(NotFound):
        publish(by=world.outsider, alias_name="clauses", version=ours)
    assert served(world) == ours


@pytest.mark.parametrize(
    "statement", ["UPDATE publishing_publication SET sequence = 9", "DELETE FROM publishing_publication"]
)
def test_the_database_refuses_to_change_history(world: World, statement: str) -> None:
    [version] = ready_versions(world)
    publish(by=world.lead, alias_name="clauses", version=version)
    with (
        pytest.raises(DatabaseError, match="append-only"),
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute(statement)
    assert Publication.objects.get().sequence == 1


@pytest.mark.django_db(transaction=True)
def test_publishing_at_once_gives_every_row_its_place(world: World) -> None:
    versions = ready_versions(world, 4)
    outcomes = at_once(
        *[
            lambda version=version: publish(by=world.lead, alias_name="clauses", version=version)
            for version in versions
        ]
    )
    assert sorted(publication.sequence for publication in outcomes) == [1, 2, 3, 4]
    assert Alias.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_rolling_back_at_once_goes_back_step_by_step(world: World) -> None:
    versions = ready_versions(world, 3)
    for version in versions:
        publish(by=world.lead, alias_name="clauses", version=version)
    alias = get_alias(world.lead, "clauses")
    at_once(*[lambda: rollback(by=world.lead, alias=alias)] * 3)
    assert served(world) == versions[0]
    assert alias.publications.filter(kind="rollback").count() == 2
