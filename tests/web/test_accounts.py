"""Who may do what, keys, grants, and the closed sign-up."""

import base64
import io
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import call_command

from stillhouse.accounts import grants
from stillhouse.accounts.access import PERMISSIONS, Permission, membership_for, require
from stillhouse.accounts.actions import add_member, create_key, create_workspace, revoke_key, set_password
from stillhouse.accounts.keys import digest_of, looks_valid, make_key
from stillhouse.accounts.models import ApiKey, Membership, User, Workspace
from stillhouse.accounts.queries import get_key, keys
from stillhouse.audit.models import AuditEvent
from stillhouse.core.errors import NotFound, UserError
from tests.world import PASSWORD, World, anybody

pytestmark = pytest.mark.django_db


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert caught.value.message and caught.value.next_step
    return caught.value.code


def test_an_outsider_and_a_stranger_see_the_same_nothing(world: World) -> None:
    for user, slug in [
        (world.outsider.user, "acme"),
        (world.expert.user, "globex"),
        (world.expert.user, "nowhere"),
    ]:
        with pytest.raises(NotFound) as caught:
            membership_for(user, slug)
        assert caught.value.message == "There is no such workspace here."
    assert membership_for(world.expert.user, "acme") == world.expert


def test_a_person_switched_off_is_in_no_workspace(world: World) -> None:
    User.objects.filter(pk=world.expert.user_id).update(is_active=False)
    with pytest.raises(NotFound):
        membership_for(User.objects.get(pk=world.expert.user_id), "acme")


@pytest.mark.parametrize(
    ("permission", "allowed"),
    [
        ("dataset.upload", "expert lead admin"),
        ("run.start", "expert lead admin"),
        ("run.cancel", "expert lead admin"),
        ("approval.ask", "expert lead admin"),
        ("version.decide", "lead admin"),
        ("alias.publish", "lead admin"),
        ("alias.rollback", "lead admin"),
        ("alias.escalate", "lead admin"),
        ("alias.keep", "lead admin"),
        ("key.manage", "lead admin"),
        ("member.manage", "admin"),
        ("pool.manage", "lead admin"),
        ("replica.manage", "admin"),
    ],
)
def test_every_permission_has_its_roles(world: World, permission: Permission, allowed: str) -> None:
    for member in (world.expert, world.lead, world.admin):
        if member.role in allowed.split():
            require(member, permission)
            continue
        with pytest.raises(UserError) as caught:
            require(member, permission)
        assert (caught.value.code, caught.value.status) == ("not_allowed", 403)
        assert "Acme" in caught.value.next_step


def test_the_table_of_permissions_is_tested_whole() -> None:
    assert len(PERMISSIONS) == 15


def test_a_key_is_shown_once_and_only_its_hmac_is_kept(world: World) -> None:
    key, secret = create_key(by=world.lead, name="Billing app")
    assert secret.startswith(f"sk-sh-{key.prefix}-") and looks_valid(secret)
    assert key.digest == digest_of(secret) and secret not in json.dumps(
        list(ApiKey.objects.values()), default=str
    )
    event = AuditEvent.objects.get(action="key.created")
    assert secret not in json.dumps(event.details) + event.object_name and event.actor == world.lead.user


def test_an_expert_makes_no_keys(world: World) -> None:
    assert code_of(lambda: create_key(by=world.expert, name="App")) == "not_allowed"
    assert not ApiKey.objects.exists()


def test_a_key_is_revoked_once_and_by_its_own_workspace(world: World) -> None:
    key, _ = create_key(by=world.lead, name="App")
    with pytest.raises(NotFound):
        revoke_key(by=world.outsider, key=key)
    with pytest.raises(NotFound):
        get_key(world.outsider, key.pk)
    assert not keys(world.outsider).exists()
    revoke_key(by=world.admin, key=key)
    first = ApiKey.objects.get(pk=key.pk).revoked_at
    revoke_key(by=world.lead, key=key)
    kept = ApiKey.objects.get(pk=key.pk)
    assert first and kept.revoked_at == first and kept.revoked_by == world.admin.user
    assert AuditEvent.objects.filter(action="key.revoked").count() == 1


def test_a_mistyped_key_is_known_without_the_database() -> None:
    secret = make_key().secret
    assert len({make_key().secret for _ in range(100)}) == 100
    for place in range(len(secret)):
        changed = secret[:place] + ("0" if secret[place] != "0" else "1") + secret[place + 1 :]
        assert not looks_valid(changed), place
    for wrong in ("", "sk-", secret + "0", secret[:-1], secret.upper(), "sk-sh-ü" + secret[7:]):
        assert not looks_valid(wrong)


def test_a_grant_says_what_it_allows_until_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    token = grants.make_grant(workspace_id="ws_1", caller="job_1", models=["base", "a@1"], seconds=60)
    grant = grants.read_grant(token)
    assert token.startswith("sg-") and grant
    assert (grant.workspace_id, grant.caller, grant.models) == ("ws_1", "job_1", frozenset({"base", "a@1"}))
    every = grants.read_grant(grants.make_grant(workspace_id="ws_1", caller="u", models=None, seconds=60))
    assert every and every.models is None
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    assert grants.read_grant(token) is None


def test_a_changed_grant_is_none() -> None:
    token = grants.make_grant(workspace_id="ws_1", caller="job_1", models=["a"], seconds=60)
    body, signature = token.removeprefix("sg-").split(".")
    payload = json.loads(base64.urlsafe_b64decode(body + "=="))
    forged = base64.urlsafe_b64encode(json.dumps({**payload, "w": "ws_2"}).encode()).rstrip(b"=").decode()
    flipped = signature[:-2] + ("A" if signature[-2] != "A" else "B") + signature[-1]
    tokens = [
        f"sg-{forged}.{signature}",
        f"sg-{body}.{flipped}",
        f"sg-{body}",
        f"sg-{body}.",
        body,
        "",
        "sg-.",
        "sg-ü.x",
    ]
    for changed in [*tokens, f"sg-{'a' * 5000}.{signature}"]:
        assert grants.read_grant(changed) is None, changed


def test_adding_somebody_twice_changes_the_role_and_never_the_password(world: World) -> None:
    globex = world.outsider.workspace
    again = add_member(
        workspace=globex, email="ERIN@acme.example ", password="another password 1", name="X", role="lead"
    )
    assert (
        again.user == world.expert.user and again.user.check_password(PASSWORD) and again.user.name == "Erin"
    )
    promoted = add_member(
        workspace=world.expert.workspace, email="erin@acme.example", password=None, name="", role="admin"
    )
    assert promoted == world.expert and Membership.objects.get(pk=world.expert.pk).role == "admin"
    assert AuditEvent.objects.filter(action="member.role_changed").count() == 1


@pytest.mark.parametrize(
    ("email", "password", "role", "code"),
    [
        ("no-address", PASSWORD, "expert", "bad_email"),
        ("x@acme.example", "short", "expert", "bad_password"),
        ("x@acme.example", "password1234567", "owner", "unknown_role"),
        ("x@acme.example", None, "expert", "bad_password"),
    ],
)
def test_a_member_that_cannot_be_is_refused(
    world: World, email: str, password: str | None, role: str, code: str
) -> None:
    before = User.objects.count()
    acme = world.expert.workspace
    assert (
        code_of(lambda: add_member(workspace=acme, email=email, password=password, name="X", role=role))
        == code
    )
    assert User.objects.count() == before


def test_a_workspace_name_is_part_of_addresses(world: World) -> None:
    assert code_of(lambda: create_workspace(name="X", slug="../etc")) == "bad_slug"
    assert create_workspace(name="Other", slug="acme") == world.expert.workspace
    assert Workspace.objects.get(slug="acme").name == "Acme"


def test_a_new_password_is_audited_in_every_workspace(world: World) -> None:
    set_password(user=world.expert.user, password="a brand new password")
    assert User.objects.get(pk=world.expert.user_id).check_password("a brand new password")
    assert (
        AuditEvent.objects.filter(action="member.password_set", object_id=world.expert.user_id).count() == 1
    )


def run_member(monkeypatch: pytest.MonkeyPatch, *arguments: str, stdin: str = "") -> tuple[Any, str]:
    """The command's JSON from stdout, or its error's code from stderr."""
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    try:
        call_command("member", *arguments, stdout=out, stderr=err)
    except SystemExit:
        return None, json.loads(err.getvalue())["error"]["code"]
    return json.loads(out.getvalue()), ""


def test_the_command_makes_people_and_their_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [
        "add",
        "--workspace",
        "initech",
        "--email",
        "Pat@initech.example",
        "--role",
        "lead",
        "--name",
        "Pat",
    ]
    made, _ = run_member(monkeypatch, *arguments, "--password-stdin", stdin=f"{PASSWORD}\n")
    assert made["created"] and made["email"] == "pat@initech.example" and made["workspace"] == "initech"
    again, _ = run_member(monkeypatch, *arguments, "--password-stdin", stdin="a different password\n")
    assert not again["created"] and User.objects.get(pk=made["id"]).check_password(PASSWORD)
    changed, _ = run_member(
        monkeypatch,
        "password",
        "--email",
        "pat@initech.example",
        "--password-stdin",
        stdin="a different password\n",
    )
    assert changed["id"] == made["id"] and User.objects.get(pk=made["id"]).check_password(
        "a different password"
    )


def test_the_command_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ["add", "--workspace", "initech", "--email", "pat@initech.example", "--role", "boss"]
    assert run_member(monkeypatch, *wrong)[1] == "unknown_role"
    assert not Workspace.objects.filter(slug="initech").exists()
    assert run_member(monkeypatch, "password", "--email", "nobody@x.example")[1] == "not_found"


def test_people_sign_in_by_e_mail_and_nobody_signs_up(world: World) -> None:
    client = anybody()
    signed_in = client.post("/accounts/login/", {"login": "Erin@acme.example", "password": PASSWORD})
    assert signed_in.status_code == 302 and client.session["_auth_user_id"] == world.expert.user_id
    wrong = anybody().post("/accounts/login/", {"login": "erin@acme.example", "password": "not the password"})
    assert wrong.status_code == 200
    form = {"email": "new@acme.example", "password1": PASSWORD, "password2": PASSWORD}
    anybody().post("/accounts/signup/", form)
    assert not User.objects.filter(email="new@acme.example").exists()
