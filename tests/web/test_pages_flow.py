"""The way from data to an app over the pages' forms, as the demonstration goes it over plain HTTP."""

import json
from typing import Any

import pytest
from django.test import Client

from stillhouse.accounts.models import ApiKey
from stillhouse.adapters.models import AdapterVersion
from stillhouse.audit.models import AuditEvent
from stillhouse.datasets.models import Dataset, DatasetVersion
from stillhouse.evaluations.models import EvaluatedRow
from stillhouse.jobs.models import CANCELLED
from stillhouse.publishing.queries import current_publication, get_alias
from stillhouse.training.models import TrainingRun
from tests.registry import (
    DEMO_BASE,
    approved,
    available_base,
    candidate,
    data_version,
    evaluate,
    make_ready,
    started_run,
)
from tests.world import PASSWORD, World, anybody, chat_row, jsonl, put

pytestmark = pytest.mark.django_db
JSON = {"accept": "application/json"}
HTMX = {"hx-request": "true"}


def page(client: Client, address: str) -> str:
    response = client.get(address)
    assert response.status_code == 200, response.content
    return response.content.decode()


def test_sign_in_and_out_with_the_form(world: World) -> None:
    client = anybody()
    text = page(client, "/accounts/login/")
    assert 'name="login"' in text and 'name="password"' in text and "Sign up" not in text
    assert (
        client.post("/accounts/login/", {"login": "erin@acme.example", "password": "wrong"}).status_code
        == 200
    )
    response = client.post(
        "/accounts/login/", {"login": "erin@acme.example", "password": PASSWORD}, follow=True
    )
    assert response.redirect_chain[-1][0] == "/w/acme/"
    client.post("/accounts/logout/")
    assert client.get("/w/acme/").status_code == 302


def test_home_says_what_comes_next(world: World) -> None:
    expert, lead = world.client(world.expert), world.client(world.lead)
    assert "Next: upload your data" in page(expert, "/w/acme/")
    run = started_run(world.expert)
    assert "Next: train an adapter" in page(expert, "/w/acme/") and run.pk in page(expert, "/w/acme/")
    version = approved(world.expert, world.lead)
    assert "Next: publish it" in page(lead, "/w/acme/")
    second = candidate(world.expert)
    evaluate(second)
    expert.post(f"/w/acme/versions/{second.pk}/ask/", {"note": "Please look."})
    assert f"Next: decide on {second}" in page(lead, "/w/acme/")
    assert "Next: decide" not in page(expert, "/w/acme/") and version.pk in page(expert, "/w/acme/")


def test_a_file_goes_from_the_form_to_a_report(world: World) -> None:
    client = world.client(world.expert)
    made = client.post("/w/acme/datasets/new/", {"name": "Letters"}, headers=JSON).json()
    body = jsonl([chat_row(f"Question {n}", f"Answer {n}") for n in range(20)])
    started = _json(client, made["uploads_url"], {"filename": "letters.jsonl", "size": len(body)})
    for number in range(1, started["parts"] + 1):
        address = client.post(started["part_url"].replace("{number}", str(number))).json()["url"]
        put(address, body[(number - 1) * started["part_size"] : number * started["part_size"]])
    finished = client.post(started["finish_url"]).json()
    version = DatasetVersion.objects.get(pk=finished["version"])
    assert version.size == len(body) and version.dataset.name == "Letters"
    assert "Checking every row" in page(client, finished["url"])
    fragment = client.get(finished["url"], headers=HTMX).content.decode()
    assert 'hx-trigger="every 1s"' in fragment and "<html" not in fragment
    assert client.get(finished["url"], headers=JSON).json()["state"] == "queued"


def test_an_abandoned_upload_leaves_nothing(world: World) -> None:
    client = world.client(world.expert)
    made = client.post("/w/acme/datasets/new/", {"name": "Letters"}, headers=JSON).json()
    started = _json(client, made["uploads_url"], {"filename": "letters.jsonl", "size": 10})
    assert client.delete(started["url"]).status_code == 204
    assert client.post(started["finish_url"]).status_code == 404
    assert not DatasetVersion.objects.exists() and Dataset.objects.get().name == "Letters"


def test_the_report_shows_lines_and_what_to_do(world: World) -> None:
    version = data_version(world.expert)
    version.report.body["errors"] = [
        {
            "row": 7,
            "field": "messages[1].role",
            "code": "unknown_role",
            "message": "Use <system>, user or assistant.",
        }
    ]
    version.report.error_count = 1
    version.report.save()
    text = page(world.client(world.expert), f"/w/acme/datasets/{version.dataset_id}/versions/1/")
    assert "messages[1].role" in text and "Use &lt;system&gt;, user or assistant." in text and ">7<" in text
    assert f"/w/acme/runs/new/?data={version.pk}" in text


def test_a_run_starts_with_what_was_typed(world: World) -> None:
    available_base()
    client, data = world.client(world.expert), data_version(world.expert)
    form = {"adapter_name": "letters", "base": DEMO_BASE, "data": data.pk, "eval_data": "", "preset": "quick"}
    response = client.post("/w/acme/runs/new/", {**form, "rank": "4", "learning_rate": ""})
    run = TrainingRun.objects.get()
    assert response.status_code == 302 and response["Location"] == f"/w/acme/runs/{run.pk}/"
    assert run.spec.rank == 4 and run.preset == "quick" and run.spec.heldout_share > 0
    text = page(client, f"/w/acme/runs/{run.pk}/")
    assert "Number 1 in line" in text and run.spec_body["base_digest"][:12] in text


def test_a_refused_run_keeps_what_was_typed(world: World) -> None:
    available_base()
    data = data_version(world.expert)
    form = {"adapter_name": "Bad Name", "base": DEMO_BASE, "data": data.pk, "preset": "quick", "seed": "41"}
    response = world.client(world.expert).post("/w/acme/runs/new/", form)
    text = response.content.decode()
    assert response.status_code == 400 and "bad_name" in text
    assert 'value="Bad Name"' in text and 'value="41"' in text and 'value="quick" checked' in text
    assert not TrainingRun.objects.exists()


def test_settings_follow_the_choices(world: World) -> None:
    available_base()
    client, data = world.client(world.expert), data_version(world.expert)
    query = {"base": DEMO_BASE, "data": data.pk, "preset": "thorough", "eval_data": ""}
    fragment = client.get("/w/acme/runs/new/", query, headers=HTMX).content.decode()
    assert "rank 32" in fragment and "<html" not in fragment
    wrong = client.get("/w/acme/runs/new/", {**query, "rank": "4000"}, headers=HTMX).content.decode()
    assert "bad_setting" in wrong and 'value="4000"' in wrong


def test_a_run_of_somebody_elses_data_cannot_be_started(world: World) -> None:
    available_base()
    foreign = data_version(world.outsider)
    form = {"adapter_name": "letters", "base": DEMO_BASE, "data": foreign.pk, "preset": "quick"}
    assert world.client(world.expert).post("/w/acme/runs/new/", form).status_code == 404
    assert not TrainingRun.objects.exists()


def test_a_queued_run_is_cancelled(world: World) -> None:
    run = started_run(world.expert)
    client = world.client(world.expert)
    assert client.post(f"/w/acme/runs/{run.pk}/cancel/").status_code == 302
    run.job.refresh_from_db()
    assert run.job.state == CANCELLED and "The run was cancelled." in page(client, f"/w/acme/runs/{run.pk}/")
    assert client.post(f"/w/acme/runs/{run.pk}/cancel/").status_code == 409


def test_from_evaluation_to_publishing_and_back(world: World) -> None:
    expert, lead = world.client(world.expert), world.client(world.lead)
    first, second = _published(world, "clauses"), candidate(world.expert)
    evaluate(second)
    make_ready(first, second)
    address = f"/w/acme/versions/{second.pk}/"
    assert "Ask for approval" in page(expert, address) and "Approve</button>" not in page(expert, address)
    expert.post(f"{address}ask/", {"note": "Better."})
    assert "Somebody else decides" in page(expert, address) and second.pk in page(lead, "/w/acme/reviews/")
    assert expert.post(f"{address}decide/", {"verdict": "approved", "reason": "Mine."}).status_code == 403
    assert "No app can reach it" in page(expert, f"/w/acme/runs/{second.run_id}/")
    lead.post(f"{address}decide/", {"verdict": "approved", "reason": "Read every answer."})
    assert "Now it is approved." in page(expert, f"/w/acme/runs/{second.run_id}/")
    lead.post(f"{address}publish/", {"alias": "clauses"})
    alias = get_alias(world.lead, "clauses")
    assert _served(alias) == second and "Read every answer." in page(expert, address)
    assert "Go back to" in page(lead, "/w/acme/aliases/") and "Roll back" not in page(
        expert, "/w/acme/aliases/"
    )
    lead.post(f"/w/acme/aliases/{alias.pk}/rollback/")
    assert _served(alias) == first


def test_a_lead_sees_why_own_work_is_not_for_them(world: World) -> None:
    version = candidate(world.lead)
    evaluate(version)
    client = world.client(world.lead)
    client.post(f"/w/acme/versions/{version.pk}/ask/", {"note": ""})
    text = page(client, f"/w/acme/versions/{version.pk}/")
    assert "Nobody approves their own work" in text and 'name="verdict"' not in text
    response = client.post(
        f"/w/acme/versions/{version.pk}/decide/", {"verdict": "approved", "reason": "Mine."}, headers=JSON
    )
    assert response.status_code == 403 and response.json()["error"]["code"] == "own_work"


def test_answers_are_filtered(world: World) -> None:
    version = candidate(world.expert)
    evaluate(version)
    client = world.client(world.expert)
    address = f"/w/acme/versions/{version.pk}/"
    for show, indexes in {"improved": [1], "regressed": [2], "both_wrong": [0], "all": [0, 1, 2, 3]}.items():
        fragment = client.get(address, {"show": show}, headers=HTMX).content.decode()
        assert [n for n in range(4) if f">Clause {n}?<" in fragment] == indexes
    assert client.get(address, {"show": "odd"}).status_code == 400
    answer = client.get(address, headers=JSON).json()
    assert (answer["evaluation"]["base_exact"], answer["evaluation"]["adapter_exact"]) == (2, 2)
    assert answer["approval"] == "none" and answer["state"] == "candidate"


def test_what_a_model_wrote_stays_text(world: World) -> None:
    """Model output is untrusted: it is shown, never run."""
    version = candidate(world.expert)
    evaluate(version)
    row = EvaluatedRow.objects.get(index=0)
    row.body["adapter"]["output"] = "<script src=/x.js></script><img src=x>"
    row.body["adapter"]["reasoning"] = "</div><b>bold</b>"
    row.save()
    text = page(world.client(world.expert), f"/w/acme/versions/{version.pk}/")
    assert "<script src=/x.js>" not in text and "&lt;script src=/x.js&gt;" in text and "<b>bold" not in text


def test_a_key_is_shown_once(world: World) -> None:
    client = world.client(world.lead)
    text = client.post("/w/acme/keys/", {"name": "Assistant"}).content.decode()
    secret = text.split('id="new-key" value="')[1].split('"')[0]
    assert secret.startswith("sk-sh-") and secret not in page(client, "/w/acme/keys/")
    key = ApiKey.objects.get()
    assert client.post(f"/w/acme/keys/{key.pk}/revoke/").status_code == 302
    assert "revoked" in page(client, "/w/acme/keys/")


def test_an_expert_makes_no_keys(world: World) -> None:
    client = world.client(world.expert)
    assert "Create key" not in page(client, "/w/acme/keys/")
    assert client.post("/w/acme/keys/", {"name": "Mine"}).status_code == 403
    assert not ApiKey.objects.exists()


def test_the_trail_is_filtered_and_checked(world: World) -> None:
    version = approved(world.expert, world.lead)
    client = world.client(world.lead)
    only = page(client, "/w/acme/audit/?action=version.approved")
    assert only.count("<time ") == 1 and str(version) in only
    assert "The chain is whole" in page(client, "/w/acme/audit/?verify=1")
    events = AuditEvent.objects.filter(workspace=world.lead.workspace)
    assert f"{events.count()} entries" in page(client, "/w/acme/audit/?verify=1&q=nothing-like-it")


def test_the_playground_hands_out_a_grant_for_this_workspace(world: World) -> None:
    from stillhouse.accounts.grants import read_grant  # noqa: PLC0415 - reads the settings of conftest

    answer = world.client(world.expert).post("/w/acme/playground/grant/").json()
    grant = read_grant(answer["grant"])
    assert grant is not None and grant.workspace_id == world.expert.workspace_id and grant.models is None
    assert grant.caller == world.expert.user_id


def test_the_playground_brings_the_instructions_of_the_adapters_data(world: World) -> None:
    version = _published(world, "clauses")
    assert 'data-instructions=""' in page(world.client(world.expert), "/w/acme/playground/")
    evaluation = version.evaluations.latest("created_at")
    row, _ = EvaluatedRow.objects.get_or_create(
        evaluation=evaluation, index=0, defaults={"body": {}, "base_exact": False, "adapter_exact": True}
    )
    row.body = {"messages": [{"role": "system", "content": 'Say "yes" & stop.'}]}
    row.save()
    said = page(world.client(world.expert), "/w/acme/playground/")
    assert 'data-instructions="Say &quot;yes&quot; &amp; stop."' in said
    assert "stop." not in page(world.client(world.outsider), "/w/globex/playground/")


def test_the_switcher_shows_only_own_workspaces(world: World) -> None:
    text = page(world.client(world.outsider), "/w/globex/")
    assert "Acme" not in text


def _json(client: Client, address: str, body: dict[str, Any]) -> Any:
    response = client.post(address, json.dumps(body), content_type="application/json")
    assert response.status_code == 201, response.content
    return response.json()


def _published(world: World, alias: str) -> AdapterVersion:
    version = approved(world.expert, world.lead)
    make_ready(version)
    world.client(world.lead).post(f"/w/acme/versions/{version.pk}/publish/", {"alias": alias})
    return version


def _served(alias: Any) -> AdapterVersion:
    publication = current_publication(alias)
    assert publication is not None
    return publication.version
