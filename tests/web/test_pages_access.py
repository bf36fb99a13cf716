"""Who sees which page: every address of a workspace, tried by an outsider and by nobody."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from django.test import Client
from django.urls import URLPattern, reverse

from stillhouse.accounts.actions import create_key
from stillhouse.datasets.models import DatasetVersion, Trial
from stillhouse.datasets.notes import add_comment
from stillhouse.datasets.trials import start_trial
from stillhouse.datasets.uploading import start_upload
from stillhouse.erasure.models import Erasure, Finding
from stillhouse.publishing.actions import publish
from stillhouse.web.urls import workspace_urls
from tests.registry import approved, make_ready
from tests.world import World, anybody, make_world
from workers.contract import DropContaining, DropDuplicates

pytestmark = pytest.mark.django_db


@dataclass(frozen=True)
class Case:
    """How to ask for a page: which thing of the workspace it is about, and by which method."""

    thing: str = ""
    """Key into `things`: "" for a page of the workspace itself."""
    method: str = "get"
    more: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    """What a lead of the workspace gets."""


CASES = {
    "home": Case(),
    "datasets": Case(),
    "dataset_new": Case(),
    "dataset": Case("dataset"),
    "dataset_version": Case("dataset", more={"number": 1}),
    "dataset_problems": Case("dataset", more={"number": 1}),
    "dataset_problems_csv": Case("dataset", more={"number": 1}),
    "dataset_reading": Case("dataset", more={"number": 1}),
    "dataset_change": Case("dataset", "post", more={"number": 1}, status=400),
    "dataset_as_seen": Case("dataset", more={"number": 1}),
    "dataset_diff": Case("dataset", more={"number": 1}),
    "dataset_try": Case("dataset", "post", more={"number": 1}, status=400),
    "dataset_trial": Case("trial"),
    "dataset_tag": Case("dataset", "post", more={"number": 1}, status=400),
    "dataset_comments": Case("dataset", more={"number": 1}),
    "comment_delete": Case("comment", "post", status=403),
    "traffic_append": Case("dataset", "post", more={"number": 1}, status=404),
    "upload_start": Case("dataset", "post", status=201),
    "upload_part": Case("upload", "post", more={"number": 1}),
    "upload_finish": Case("upload", "post", status=400),
    "upload_abandon": Case("upload", "delete", status=204),
    "erasures": Case(),
    "erasure": Case("erasure"),
    "erasure_confirm": Case("erasure", "post", status=409),
    "erasure_withdraw": Case("erasure", "post", status=302),
    "quarantine_decide": Case("erasure", "post", status=404),
    "runs": Case(),
    "run_new": Case(),
    "run_estimate": Case(),
    "run": Case("run"),
    "run_events": Case("run"),
    "run_cancel": Case("run", "post", status=302),
    "run_pause": Case("run", "post", status=302),
    "run_resume": Case("run", "post", status=409),
    "run_retry": Case("run", "post", status=409),
    "run_priority": Case("run", "post", status=400),
    "adapters": Case(),
    "version": Case("version"),
    "evaluate_again": Case("version", "post", status=409),
    "approval_ask": Case("version", "post", status=409),
    "decide": Case("version", "post", status=400),
    "publish": Case("version", "post", status=400),
    "retire": Case("version", "post", status=400),
    "reviews": Case(),
    "aliases": Case(),
    "alias_shares": Case("alias", "post", status=400),
    "alias_traffic": Case("alias"),
    "alias_keeping": Case("alias", "post", status=400),
    "alias_escalation": Case("alias", "post", status=400),
    "rollback": Case("alias", "post", status=409),
    "playground": Case(),
    "playground_grant": Case(method="post"),
    "keys": Case(),
    "key_change": Case("key", "post", status=302),
    "usage": Case(),
    "key_revoke": Case("key", "post", status=302),
    "pools": Case(),
    "replica_drain": Case(method="post", more={"pool": "demo", "replica": "replica-1"}, status=403),
    "replica_undrain": Case(method="post", more={"pool": "demo", "replica": "replica-1"}, status=403),
    "replica_forget": Case(method="post", more={"pool": "demo", "replica": "replica-1"}, status=403),
    "version_pin": Case("version", "post", status=302),
    "bases": Case(),
    "fleet": Case(),
    "fleet_change": Case(method="post", status=400),
    "notifications": Case(),
    "audit": Case(),
}
NAMES = [pattern.name or "" for pattern in workspace_urls if isinstance(pattern, URLPattern)]
WITH_A_THING = [name for name, case in CASES.items() if case.thing]


def a_trial(world: World, data: DatasetVersion) -> Trial:
    return start_trial(by=world.expert, version=data, operations=[DropContaining(text="Question")])


@pytest.fixture(scope="module")
def house(shared: None) -> World:
    return make_world()


@pytest.fixture
def world(db: None, house: World) -> World:
    """The people of all these tests, nobody signed in yet."""
    return replace(house, _clients={})


@pytest.fixture(scope="module")
def things(house: World) -> dict[str, str]:
    """One of each thing that has a page, in the workspace `acme`."""
    world = house
    version = approved(world.expert, world.lead)
    make_ready(version)
    alias = publish(by=world.lead, alias_name="clauses", version=version).alias
    key, _ = create_key(by=world.lead, name="App")
    dataset = version.run.data.dataset
    erasure = Erasure.objects.create(workspace=dataset.workspace, why="Ticket", asked_by=world.expert.user)
    Finding.objects.create(erasure=erasure, version=version.run.data, trial=a_trial(world, version.run.data))
    upload = start_upload(by=world.expert, dataset=dataset, filename="rows.jsonl", size=10)
    trial = start_trial(by=world.expert, version=version.run.data, operations=[DropDuplicates()])
    comment = add_comment(by=world.expert, version=version.run.data, row=1, text="Is this right?")
    return {
        "dataset": dataset.pk,
        "comment": comment.pk,
        "trial": trial.pk,
        "upload": upload.pk,
        "erasure": erasure.pk,
        "run": version.run.pk,
        "version": version.pk,
        "alias": alias.pk,
        "key": key.pk,
    }


def ask(client: Client, name: str, workspace: str, things: dict[str, str], **headers: str) -> Any:
    case = CASES[name]
    named = {"id": things[case.thing]} if case.thing else {}
    address = reverse(name, kwargs={"ws": workspace, **named, **case.more})
    send: Callable[..., Any] = getattr(client, case.method)
    if name == "upload_start":
        body = json.dumps({"filename": "a.jsonl", "size": 5})
        return send(address, body, content_type="application/json", headers=headers)
    return send(address, headers=headers)


def test_every_address_has_a_case() -> None:
    assert sorted(NAMES) == sorted(CASES)


@pytest.mark.parametrize("name", NAMES)
def test_a_member_gets_an_answer(name: str, world: World, things: dict[str, str]) -> None:
    assert ask(world.client(world.lead), name, "acme", things).status_code == CASES[name].status


@pytest.mark.parametrize("name", NAMES)
def test_an_outsider_finds_nothing(name: str, world: World, things: dict[str, str]) -> None:
    response = ask(world.client(world.outsider), name, "acme", things)
    assert response.status_code == 404 and "There is no such workspace here." in response.content.decode()
    for secret in things.values():
        assert secret.encode() not in response.content


@pytest.mark.parametrize("name", WITH_A_THING)
def test_a_thing_is_not_found_under_another_workspace(
    name: str, world: World, things: dict[str, str]
) -> None:
    """The outsider is an administrator at home: the address is right, the thing is somebody else's."""
    response = ask(world.client(world.outsider), name, "globex", things, accept="application/json")
    assert response.status_code == 404 and response.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("name", NAMES)
def test_nobody_is_sent_to_the_sign_in(name: str, world: World, things: dict[str, str]) -> None:
    response = ask(anybody(), name, "acme", things)
    if (
        name.startswith("upload_") or name == "playground_grant"
    ):  # a program asks: it gets a status it understands
        assert response.status_code == 401 and response.json()["error"]["code"] == "not_signed_in"
    else:
        assert response.status_code == 302 and response["Location"].startswith("/accounts/login/")


@pytest.mark.parametrize("name", NAMES)
def test_other_methods_are_refused(name: str, world: World, things: dict[str, str]) -> None:
    case = CASES[name]
    named = {"id": things[case.thing]} if case.thing else {}
    address = reverse(name, kwargs={"ws": "acme", **named, **case.more})
    assert world.client(world.lead).put(address).status_code == 405


def test_forms_need_their_token(world: World, things: dict[str, str]) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(world.lead.user, backend="allauth.account.auth_backends.AuthenticationBackend")
    response = client.post(f"/w/acme/keys/{things['key']}/revoke/", headers={"accept": "application/json"})
    assert response.status_code == 403 and response.json()["error"]["code"] == "stale_form"


def test_nothing_inline_and_nothing_from_elsewhere(world: World, things: dict[str, str]) -> None:
    """What the policy forbids must not be on a page, or the page would be broken where the policy holds."""
    client = world.client(world.lead)
    for name in [name for name in NAMES if CASES[name].method == "get" and name != "run_events"]:
        response = ask(client, name, "acme", things)
        text = response.content.decode()
        policy = response["Content-Security-Policy"]
        assert (
            "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        )
        for forbidden in (
            " style=",
            "<style",
            " onclick=",
            "javascript:",
            'src="http',
            'href="//',
            "{{",
            "{%",
        ):
            assert forbidden not in text, (name, forbidden)
        assert "<script>" not in text
