"""Pools, placements, and what agents report."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from stillhouse.adapters.models import AdapterVersion
from stillhouse.catalog.actions import sync_catalog
from stillhouse.catalog.models import BaseModel
from stillhouse.core.errors import Conflict, NotFound, UserError
from stillhouse.serving.actions import add_pool, place_version, sync_pool, unplace_version
from stillhouse.serving.models import Holding, Placement, Replica
from stillhouse.serving.queries import is_ready, pools
from tests.registry import (
    DEMO_BASE,
    POOL,
    at_once,
    available_base,
    candidate,
    held,
    make_ready,
    pool_report,
    sha,
)
from tests.world import World
from workers.contract import HeldVersion, PoolWanted

pytestmark = pytest.mark.django_db


@pytest.fixture
def version(world: World) -> AdapterVersion:
    """A candidate, placed on the demonstration pool that no replica has reported to."""
    made: AdapterVersion = candidate(world.expert)
    add_pool(name=POOL, base=available_base())
    return made


def sync(*held: HeldVersion, **changes: Any) -> PoolWanted:
    return sync_pool(pool_name=POOL, report=pool_report(*held, **changes))


def notified(*held: HeldVersion, **changes: Any) -> bool:
    """Whether this report told the gateway to look again."""
    statements: list[str] = []

    def spy(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if "pg_notify" in sql:
            statements.append(str(params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(spy):
        sync(*held, **changes)
    return any("stillhouse_gateway" in statement for statement in statements)


def test_a_pool_is_added_once_and_for_one_available_base() -> None:
    sync_catalog()
    with pytest.raises(UserError) as caught:
        add_pool(name=POOL, base=BaseModel.objects.get(pk=DEMO_BASE))
    assert caught.value.code == "base_not_available"
    base, other = available_base(), available_base("qwen3-8b")
    assert add_pool(name=POOL, base=base) == add_pool(name=POOL, base=base)
    with pytest.raises(Conflict):
        add_pool(name=POOL, base=other)
    with pytest.raises(UserError):
        add_pool(name="../x", base=base)
    assert [pool.name for pool in pools()] == [POOL]


def test_a_new_pool_takes_in_the_versions_there_are(version: AdapterVersion) -> None:
    assert Placement.objects.get().version == version


def test_placing_is_idempotent_and_only_on_pools_of_the_base(world: World) -> None:
    add_pool(name=POOL, base=available_base())
    add_pool(name="second", base=available_base())
    add_pool(name="qwen", base=available_base("qwen3-8b"))
    version = candidate(world.expert)
    assert place_version(version=version) == place_version(version=version)
    assert {placement.pool_id for placement in Placement.objects.all()} == {POOL, "second"}
    unplace_version(version=version)
    unplace_version(version=version)
    assert not Placement.objects.exists()


def test_what_is_wanted_comes_with_every_file_and_a_signed_url(version: AdapterVersion) -> None:
    [wanted] = sync().wanted
    assert (wanted.name, wanted.digest) == (version.serving_name, version.digest)
    names = {file.name: file for file in wanted.files}
    assert set(names) == {"adapter_model.safetensors", "adapter_config.json", "manifest.json"}
    assert names["manifest.json"].sha256 == version.digest
    assert names["manifest.json"].size == version.manifest_size
    assert all(file.sha256 in file.url and "X-Amz-Signature" in file.url for file in wanted.files)


def test_an_agent_is_asked_to_hurry_while_something_loads(version: AdapterVersion) -> None:
    assert sync().poll_seconds == 0.5
    assert sync(held(version, "loading")).poll_seconds == 0.5
    assert sync(held(version)).poll_seconds == 1
    assert sync(held(version, "failed", error="no")).poll_seconds == 1


@pytest.mark.parametrize(
    ("state", "wanted"), [("approved", 1), ("candidate", 1), ("rejected", 0), ("retired", 0)]
)
def test_only_candidates_and_approved_versions_are_wanted(
    version: AdapterVersion, state: str, wanted: int
) -> None:
    AdapterVersion.objects.filter(pk=version.pk).update(state=state)
    assert len(sync().wanted) == wanted


def test_a_version_of_earlier_weights_is_not_wanted(version: AdapterVersion) -> None:
    BaseModel.objects.filter(pk=DEMO_BASE).update(digest=sha("replaced"))
    assert sync(base_digest=sha("replaced")).wanted == []


def test_ready_means_reported_ready_by_a_healthy_replica_lately(version: AdapterVersion) -> None:
    assert not is_ready(version)
    sync(held(version, "loading"))
    assert not is_ready(version)
    sync(held(version))
    assert is_ready(version)
    sync(held(version), healthy=False)
    assert not is_ready(version)
    sync(held(version))
    Replica.objects.update(reported_at=timezone.now() - timedelta(minutes=1))
    assert not is_ready(version)


def test_a_restarted_engine_holds_nothing_until_it_says_so(version: AdapterVersion) -> None:
    sync(held(version))
    sync(incarnation="second")
    assert not is_ready(version)
    sync(held(version), incarnation="second")
    assert is_ready(version)


def test_a_digest_that_is_not_ours_has_failed(version: AdapterVersion) -> None:
    sync(held(version, digest=sha("something else")))
    holding = Holding.objects.get()
    assert holding.state == "failed" and sha("something else")[:12] in holding.error
    assert not is_ready(version)


def test_names_nobody_knows_are_ignored_and_dropped_ones_forgotten(version: AdapterVersion) -> None:
    sync(held(version), HeldVersion(name="../evil@000000000000", digest=sha("evil"), state="ready"))
    assert Holding.objects.get().version == version
    sync()
    assert not Holding.objects.exists()


def test_other_weights_make_a_replica_useless_and_say_why(version: AdapterVersion) -> None:
    answer = sync(held(version), base_digest=sha("other weights"))
    replica = Replica.objects.get()
    assert not replica.healthy and sha("other weights")[:12] in replica.error
    assert answer.wanted == [] and not is_ready(version)
    sync(held(version))
    assert is_ready(version) and Replica.objects.get().error == ""


def test_another_name_for_the_base_makes_a_replica_useless(version: AdapterVersion) -> None:
    sync(held(version), base="gpt-17")
    assert not is_ready(version)


def test_the_gateway_hears_of_changes_and_not_of_every_poll(version: AdapterVersion) -> None:
    assert notified()
    assert not notified()
    assert not notified(held(version, "loading"))
    assert notified(held(version))
    assert not notified(held(version))
    assert notified(held(version), healthy=False)
    assert notified(held(version), url="http://127.0.0.1:9999", healthy=False)
    assert notified(held(version), url="http://127.0.0.1:9999", healthy=False, incarnation="second")
    assert notified(url="http://127.0.0.1:9999", healthy=False, incarnation="second")


def test_proof_and_load_time_are_kept(version: AdapterVersion) -> None:
    distances = {"adapter_distance": 0.02, "base_distance": 2.0, "tokens": 40}
    proof = {**distances, "effect": 2.0, "share": 0.99, "share_error": 0.01, "code": "applied"}
    sync(held(version, proof=proof, load_ms=41.5))
    holding = Holding.objects.get()
    assert (holding.proof, holding.load_ms) == (proof, 41.5)


@pytest.mark.parametrize("url", ["ftp://x", "/etc/passwd", "http://", "http://a\nb", "http://" + "a" * 300])
def test_a_url_no_engine_could_have_is_refused(version: AdapterVersion, url: str) -> None:
    with pytest.raises(UserError) as caught:
        sync(url=url)
    assert caught.value.code == "bad_url"


def test_an_unknown_pool_is_not_found() -> None:
    with pytest.raises(NotFound):
        sync_pool(pool_name="../demo", report=pool_report())


def test_two_replicas_are_told_apart(world: World) -> None:
    version = candidate(world.expert)
    make_ready(version)
    sync(replica="replica-2", url="http://127.0.0.1:8002")
    assert is_ready(version)
    assert Replica.objects.count() == 2 and Holding.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_first_reports_at_once_make_one_replica(world: World) -> None:
    version = candidate(world.expert)
    add_pool(name=POOL, base=available_base())
    answers = at_once(*[lambda: sync(held(version))] * 4)
    assert all(isinstance(answer, PoolWanted) for answer in answers)
    assert (Replica.objects.count(), Holding.objects.count()) == (1, 1)
