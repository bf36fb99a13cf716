"""Aliases: publishing, rolling back, and the history in between."""

from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from stillhouse.adapters.models import AdapterVersion
from stillhouse.audit.models import AuditEvent
from stillhouse.core.errors import NotFound, UserError
from stillhouse.publishing.actions import (
    end_canary,
    end_shadow,
    publish,
    publish_once_loaded,
    rollback,
    start_canary,
    start_shadow,
)
from stillhouse.publishing.models import Alias, Publication, Share
from stillhouse.publishing.queries import (
    aliases,
    aliases_of,
    current_publication,
    get_alias,
    history,
    live_version_ids,
    rollback_target,
)
from stillhouse.publishing.retirement import retire_version
from stillhouse.serving.actions import sync_pool
from stillhouse.serving.models import Placement
from tests.registry import DEMO_BASE, approved, at_once, candidate, held, make_ready, pool_report
from tests.waiting import wait_for
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


def test_what_is_cold_is_asked_for_and_the_sentence_says_so(world: World) -> None:
    first, second = ready_versions(world, 2)
    publish(by=world.lead, alias_name="clauses", version=first)
    sync_pool(pool_name="demo", report=pool_report(held(first)))
    with pytest.raises(UserError) as caught:
        publish(by=world.lead, alias_name="clauses", version=second)
    assert caught.value.code == "not_ready" and "being loaded now" in caught.value.next_step
    assert Placement.objects.get(version=second).wanted_at and served(world) == first
    sync_pool(pool_name="demo", report=pool_report(held(first), held(second, "failed")))
    with pytest.raises(UserError) as caught:
        publish(by=world.lead, alias_name="clauses", version=second)
    assert "did the version load there?" in caught.value.next_step


@pytest.mark.django_db(transaction=True)
def test_what_is_cold_is_published_once_it_is_loaded(world: World) -> None:
    first, second = ready_versions(world, 2)
    publish(by=world.lead, alias_name="clauses", version=first)
    sync_pool(pool_name="demo", report=pool_report(held(first)))

    def load() -> None:
        wait_for(lambda: Placement.objects.filter(version=second, wanted_at__isnull=False).exists())
        sync_pool(pool_name="demo", report=pool_report(held(first), held(second)))

    publication, error = at_once(
        lambda: publish_once_loaded(by=world.lead, alias_name="clauses", version=second), load
    )
    assert error is None and publication.version == second and served(world) == second


def test_nobody_waits_for_what_will_not_be_loaded(world: World) -> None:
    first, second = ready_versions(world, 2)
    for failed in (pool_report(held(first), held(second, "failed")), pool_report(healthy=False)):
        sync_pool(pool_name="demo", report=failed)
        with pytest.raises(UserError) as caught:
            publish_once_loaded(by=world.lead, alias_name="clauses", version=second, seconds=3600)
        assert caught.value.code == "not_ready"
    sync_pool(pool_name="demo", report=pool_report(held(first)))
    with pytest.raises(UserError) as caught:
        publish_once_loaded(by=world.lead, alias_name="clauses", version=second, seconds=0.1)
    assert caught.value.code == "not_ready" and not Publication.objects.exists()


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


def test_a_version_out_of_use_is_retired_and_nothing_goes_back_to_it(world: World) -> None:
    first, second = ready_versions(world, 2)
    for version in (first, second):
        publish(by=world.lead, alias_name="clauses", version=version)
    alias = get_alias(world.lead, "clauses")
    for by, version, code in (
        (world.expert, first, "not_allowed"),
        (world.lead, second, "still_published"),
        (world.outsider, first, "not_found"),
    ):
        with pytest.raises(UserError) as caught:
            retire_version(by=by, version=version, reason="old")
        assert caught.value.code == code
    retire_version(by=world.lead, version=first, reason="Its data was withdrawn.")
    assert first.state == "retired" and not Placement.objects.filter(version=first).exists()
    assert rollback_target(alias) is None and refused_to_publish(world, first) == "model_not_approved"
    assert AuditEvent.objects.get(action="version.retired").details == {"reason": "Its data was withdrawn."}
    with pytest.raises(UserError) as caught:
        retire_version(by=world.lead, version=first, reason="again")
    assert caught.value.code == "not_approved"


def refused_to_publish(world: World, version: AdapterVersion) -> str:
    with pytest.raises(UserError) as caught:
        publish(by=world.lead, alias_name="clauses", version=version)
    return caught.value.code


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


def parts(alias: Alias) -> list[tuple[str, int, bool]]:
    """Serving name, per cent and shadow of the newest publication's shares."""
    row = history(alias).first()
    assert row is not None
    return [(share.version.id, share.percent, share.shadow) for share in row.shares.order_by("shadow")]


def test_a_canary_leaves_the_version_and_a_hundred_per_cent_replaces_it(world: World) -> None:
    first, second = ready_versions(world, 2)
    alias = publish(by=world.lead, alias_name="clauses", version=first).alias
    start_canary(by=world.lead, alias=alias, version=second, percent=10)
    start_canary(by=world.lead, alias=alias, version=second, percent=50, spread="request")
    assert parts(alias) == [(second.id, 50, False)] and served(world) == first
    assert aliases_of(second) == aliases_of(first) == [alias]
    assert rollback_target(alias) is None
    full = start_canary(by=world.lead, alias=alias, version=second, percent=100)
    assert (full.kind, full.sequence) == ("publish", 4) and served(world) == second and parts(alias) == []
    assert rollback(by=world.lead, alias=alias).version == first
    assert AuditEvent.objects.filter(action="alias.shared").count() == 2
    details = AuditEvent.objects.filter(action="alias.shared").latest("sequence").details
    assert details["canary"]["percent"] == 50 and details["serving_name"] == first.serving_name


def test_canary_and_shadow_end_apart_and_publishing_ends_both(world: World) -> None:
    first, second, third = ready_versions(world, 3)
    alias = publish(by=world.lead, alias_name="clauses", version=first).alias
    start_canary(by=world.lead, alias=alias, version=second, percent=10)
    start_shadow(by=world.lead, alias=alias, version=third, percent=100)
    assert parts(alias) == [(second.id, 10, False), (third.id, 100, True)]
    assert live_version_ids(since=timezone.now()) == {first.id, second.id, third.id}
    end_canary(by=world.lead, alias=alias)
    assert parts(alias) == [(third.id, 100, True)]
    end_shadow(by=world.lead, alias=alias)
    before = alias.publications.count()
    end_shadow(by=world.lead, alias=alias)
    assert parts(alias) == [] and alias.publications.count() == before
    start_shadow(by=world.lead, alias=alias, version=third, percent=5)
    publish(by=world.lead, alias_name="clauses", version=first)
    assert parts(alias) == [] and served(world) == first


@pytest.mark.parametrize("percent", [0, -1, 101])
def test_a_share_is_a_part(world: World, percent: int) -> None:
    first, second = ready_versions(world, 2)
    alias = publish(by=world.lead, alias_name="clauses", version=first).alias
    start: Any
    for start in (start_canary, start_shadow):
        with pytest.raises(UserError) as caught:
            start(by=world.lead, alias=alias, version=second, percent=percent)
        assert caught.value.code == "bad_share"
    assert alias.publications.count() == 1


def test_only_a_lead_shares_and_only_what_may_serve(world: World) -> None:
    first, second = ready_versions(world, 2)
    alias = publish(by=world.lead, alias_name="clauses", version=first).alias
    start: Any
    for start in (start_canary, start_shadow):
        for by, error in ((world.expert, "not_allowed"), (world.outsider, "not_found")):
            with pytest.raises(UserError) as caught:
                start(by=by, alias=alias, version=second, percent=100)
            assert caught.value.code == error
        AdapterVersion.objects.filter(pk=second.pk).update(state="retired")
        with pytest.raises(UserError) as caught:
            start(by=world.lead, alias=alias, version=second, percent=10)
        assert caught.value.code == "model_not_approved"
        AdapterVersion.objects.filter(pk=second.pk).update(state="approved")
    for end in (end_canary, end_shadow):
        with pytest.raises(NotFound):
            end(by=world.outsider, alias=alias)
    with pytest.raises(UserError) as caught:
        start_canary(by=world.lead, alias=alias, version=first, percent=10)
    assert caught.value.code == "bad_share"


def test_shares_are_never_changed(world: World) -> None:
    first, second = ready_versions(world, 2)
    alias = publish(by=world.lead, alias_name="clauses", version=first).alias
    start_canary(by=world.lead, alias=alias, version=second, percent=10)
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
        Share.objects.update(percent=90)
    assert parts(alias) == [(second.id, 10, False)]


def test_the_alias_page_starts_grows_and_ends_a_canary(world: World) -> None:
    first, second = ready_versions(world, 2)
    alias = publish(by=world.lead, alias_name="clauses", version=first).alias
    client, address = world.client(world.lead), f"/w/acme/aliases/{alias.pk}/shares/"
    form = {"kind": "canary", "version": second.pk, "percent": "10", "spread": "user"}
    assert client.post(address, form).status_code == 302
    text = client.get("/w/acme/aliases/").content.decode()
    assert "End canary" in text and "10 %" in text
    assert "End canary" not in world.client(world.expert).get("/w/acme/aliases/").content.decode()
    client.post(address, {**form, "percent": "50"})
    assert parts(alias) == [(second.id, 50, False)]
    client.post(address, {**form, "kind": "shadow", "percent": "20"})
    assert parts(alias) == [(second.id, 50, False), (second.id, 20, True)]
    client.post(address, {"kind": "shadow", "percent": "0"})
    client.post(address, {**form, "percent": "0"})
    assert parts(alias) == []
    assert client.post(address, {**form, "percent": "many"}).status_code == 400
    theirs = world.client(world.outsider).post(f"/w/globex/aliases/{alias.pk}/shares/", form)
    assert theirs.status_code == 404
