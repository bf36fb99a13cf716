"""The pool page: what each replica holds, for one workspace's eyes, and taking a replica out of service."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from stillhouse.publishing.actions import publish
from stillhouse.serving.actions import add_pool, sync_pool
from stillhouse.serving.models import Placement, Replica
from tests.registry import POOL, approved, available_base, candidate, held, make_ready, pool_report
from tests.world import World

pytestmark = pytest.mark.django_db


def page(world: World, member: str = "lead", workspace: str = "acme", query: str = "", **headers: str) -> str:
    client = world.client(getattr(world, member))
    response = client.get(f"/w/{workspace}/pools/{query}", headers=headers)
    assert response.status_code == 200
    return str(response.content.decode())


def test_without_pool_and_without_engine_the_page_teaches(world: World) -> None:
    assert "manage.py pool add NAME --base ID" in page(world)
    add_pool(name=POOL, base=available_base())
    assert "POOL=demo python -m workers agent" in page(world)


def test_it_shows_replicas_what_they_hold_and_what_failed(world: World) -> None:
    good, bad = candidate(world.expert, adapter_name="good"), candidate(world.expert, adapter_name="bad")
    make_ready(good, bad)
    report = pool_report(
        held(good, load_ms=41.0), held(bad, "failed", error="manifest.json was damaged."), capacity=16
    )
    sync_pool(pool_name=POOL, report=report)
    text = page(world)
    for expected in ("replica-1", "vllm 0", "first", "16 versions in memory", "loaded in 41 ms", "good v1"):
        assert expected in text
    assert "manifest.json was damaged." in text
    assert "<html" not in page(world, **{"HX-Request": "true"}), "the live part alone"


def test_the_agents_trouble_and_wrong_weights_are_said(world: World) -> None:
    add_pool(name=POOL, base=available_base())
    sync_pool(pool_name=POOL, report=pool_report(trouble="The weights cannot be read."))
    assert "The weights cannot be read." in page(world)
    sync_pool(pool_name=POOL, report=pool_report(base_digest="f" * 64))
    text = page(world)
    assert "not usable" in text and "ffffffffffff" in text
    sync_pool(pool_name=POOL, report=pool_report(healthy=False))
    assert "engine away" in page(world)
    Replica.objects.update(reported_at=timezone.now() - timedelta(minutes=5))
    assert "not reporting" in page(world)


def test_of_other_workspaces_only_a_number_is_shown(world: World) -> None:
    version = candidate(world.expert, adapter_name="very-secret")
    make_ready(version)
    text = page(world, "outsider", "globex")
    assert "replica-1" in text and "1 version of other workspaces" in text
    assert "very-secret" not in text and version.pk not in text


def test_an_administrator_drains_and_nobody_else_sees_the_button(world: World) -> None:
    make_ready(candidate(world.expert))
    assert "Drain" not in page(world, "expert") and "Drain" not in page(world, "lead")
    address = f"/w/acme/pools/{POOL}/replica-1"
    refused = world.client(world.lead).post(f"{address}/drain/", headers={"accept": "application/json"})
    assert refused.status_code == 403 and refused.json()["error"]["code"] == "not_allowed"
    assert world.client(world.admin).post(f"{address}/drain/").status_code == 302
    assert "drained" in page(world) and "Send requests again" in page(world, "admin")
    assert world.client(world.admin).post(f"{address}/undrain/").status_code == 302
    assert Replica.objects.get().draining == ""
    gone = world.client(world.admin).post(f"/w/acme/pools/{POOL}/nobody/drain/")
    assert gone.status_code == 404


def test_a_version_is_pinned_from_the_page(world: World) -> None:
    version = approved(world.expert, world.lead)
    make_ready(version)
    publish(by=world.lead, alias_name="clauses", version=version)
    assert "published as clauses" in page(world)
    world.client(world.lead).post(f"/w/acme/versions/{version.pk}/pin/", {"pinned": "1"})
    assert Placement.objects.get().pinned and "Pinned: let go" in page(world)
    assert (
        world.client(world.outsider)
        .post(f"/w/globex/versions/{version.pk}/pin/", {"pinned": "0"})
        .status_code
        == 404
    )
    world.client(world.lead).post(f"/w/acme/versions/{version.pk}/pin/", {"pinned": "0"})
    assert not Placement.objects.get().pinned


def test_hundreds_of_versions_are_looked_through_page_by_page(
    world: World, django_assert_max_num_queries: Any
) -> None:
    versions = [candidate(world.expert, adapter_name=f"lease-{number}") for number in range(58)]
    make_ready(*versions)
    sync_pool(
        pool_name=POOL,
        report=pool_report(*[held(one) for one in versions[:57]], held(versions[57], "failed", error="No.")),
    )
    with django_assert_max_num_queries(40):
        text = page(world)
    assert "All 58 versions" in text and text.count("lease-57") and text.count('aria-label="Pin ') == 8
    assert "58 in all; the list below has each of them" in text
    whole = f"?versions={POOL}"
    with django_assert_max_num_queries(40):
        text = page(world, query=whole)
    assert text.count('aria-label="Pin ') == 50 and "1–50 of 58" in text
    assert page(world, query=f"{whole}&page=2").count('aria-label="Pin ') == 8
    found = page(world, query=f"{whole}&q=lease-31")
    assert found.count('aria-label="Pin ') == 1 and "ready" in found
    assert "None of them is called like that." in page(world, query=f"{whole}&q=nothing")
    assert "lease" not in page(world, "outsider", "globex", query=whole)
    assert page(world, query="?versions=nobody&page=x&q=%00").count('aria-label="Pin ') == 8


def test_a_pin_leads_back_to_where_it_was_clicked_and_nowhere_else(world: World) -> None:
    version = candidate(world.expert)
    make_ready(version)
    for back, expected in (
        (f"/w/acme/pools/?versions={POOL}&page=2", f"/w/acme/pools/?versions={POOL}&page=2"),
        ("https://evil.example/", "/w/acme/pools/"),
        ("/w/acme/pools/../keys/", "/w/acme/pools/"),
    ):
        answer = world.client(world.lead).post(
            f"/w/acme/versions/{version.pk}/pin/", {"pinned": "1", "next": back}
        )
        assert answer.headers["location"] == expected
