"""The command line: the same actions and rules as the pages, JSON in and out."""

import json
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command

from stillhouse.approvals.models import Decision
from tests.registry import approved, available_base, candidate, evaluate, make_ready
from tests.world import World

pytestmark = pytest.mark.django_db


def run(*words: str) -> Any:
    """What `manage.py` prints, read as JSON."""
    out = StringIO()
    call_command(*words, stdout=out)
    return json.loads(out.getvalue())


def failure(*words: str) -> dict[str, str]:
    """The error that `manage.py` prints before it exits with status 1."""
    out, err = StringIO(), StringIO()
    with pytest.raises(SystemExit) as caught:
        call_command(*words, stdout=out, stderr=err)
    assert caught.value.code == 1 and out.getvalue() == ""
    error: dict[str, str] = json.loads(err.getvalue())["error"]
    assert error["message"]
    return error


def test_the_whole_way_on_the_command_line(world: World) -> None:
    expert, lead = world.expert.user.email, world.lead.user.email
    versions = [candidate(world.expert), candidate(world.expert)]
    for version in versions:
        evaluate(version)
    make_ready(*versions)
    for version in versions:
        assert run("ask", version.id, "--as", expert)["version"] == version.id
        answer = run("approve", version.serving_name, "--as", lead, "--reason", "Good.")
        assert (answer["state"], answer["decided_by"]) == ("approved", lead)
        assert run("publish", "clauses", version.serving_name, "--as", lead)["version"] == version.id
    listed = {entry["id"]: entry for entry in run("versions", "--as", expert)}
    assert [listed[version.id]["aliases"] for version in versions] == [[], ["clauses"]]
    assert listed[versions[0].id]["ready"] and listed[versions[0].id]["evaluation"]["rows"] == 4
    back = run("rollback", "clauses", "--as", lead)
    assert (back["kind"], back["version"], back["sequence"]) == ("rollback", versions[0].id, 3)


def test_rules_hold_on_the_command_line(world: World) -> None:
    expert, lead, outsider = (by.user.email for by in (world.expert, world.lead, world.outsider))
    version = candidate(world.lead)
    evaluate(version)
    make_ready(version)
    assert failure("approve", version.id, "--as", lead)["code"] == "own_work"
    assert failure("approve", version.id, "--as", expert)["code"] == "not_allowed"
    assert failure("publish", "clauses", version.id, "--as", lead)["code"] == "model_not_approved"
    assert failure("publish", "../x", version.id, "--as", lead)["code"] == "bad_name"
    assert failure("approve", version.id, "--as", outsider)["code"] == "not_found"
    assert failure("publish", "clauses", version.id, "--as", outsider)["code"] == "not_found"
    assert failure("rollback", "clauses", "--as", lead)["code"] == "not_found"
    assert failure("versions", "--as", "nobody@acme.example")["code"] == "not_found"
    assert failure("versions", "--as", expert, "--workspace", "globex")["code"] == "not_found"
    assert run("versions", "--as", outsider) == [] and not Decision.objects.exists()


def test_a_version_is_rejected_on_the_command_line(world: World) -> None:
    version = candidate(world.expert)
    evaluate(version)
    run("ask", version.id, "--as", world.expert.user.email)
    answer = run("approve", version.id, "--as", world.lead.user.email, "--reject", "--reason", "Worse.")
    assert (answer["verdict"], answer["state"]) == ("rejected", "rejected")


def test_rollback_says_when_there_is_nothing_to_go_back_to(world: World) -> None:
    version = approved(world.expert, world.lead)
    make_ready(version)
    run("publish", "clauses", version.id, "--as", world.lead.user.email)
    assert failure("rollback", "clauses", "--as", world.lead.user.email)["code"] == "nothing_to_roll_back_to"


def test_bases_and_pools_are_listed(world: World) -> None:
    available_base()
    by_id = {base["id"]: base for base in run("base", "list")}
    assert by_id["smollm2-135m-instruct"]["available"] and not by_id["qwq-32b"]["available"]
    assert failure("base", "add", "/nowhere/at/all")["code"] == "no_such_folder"
    assert run("pool", "add", "demo", "--base", "smollm2-135m-instruct")["base"] == "smollm2-135m-instruct"
    assert failure("pool", "add", "q", "--base", "gpt-17")["code"] == "unknown_base"
    assert failure("pool", "add", "q", "--base", "qwq-32b")["code"] == "base_not_available"
    assert [pool["name"] for pool in run("pool", "list")] == ["demo"]


def test_a_quota_is_shown_and_set(world: World) -> None:
    slug = world.expert.workspace.slug
    before = run("quota", slug)
    assert before["used"] == 0 and before["left"] == before["limit"] and not before["own"]
    assert run("quota", slug, "--bytes", "12") == {**before, "limit": 12, "left": 12, "own": True}
    assert run("quota", slug, "--default") == before
    assert failure("quota", "nobody")["code"] == "not_found"
