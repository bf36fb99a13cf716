"""Erasing rows, from the search by the workers' own code to the last byte and the end of a quarantine."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from stillhouse.accounts.models import Membership
from stillhouse.adapters.models import AdapterVersion
from stillhouse.audit.models import AuditEvent
from stillhouse.core import blobs
from stillhouse.core.errors import Conflict, NotFound, UserError
from stillhouse.datasets.actions import create_dataset
from stillhouse.datasets.deriving import derive_version
from stillhouse.datasets.models import DatasetReport, DatasetVersion, Trial
from stillhouse.erasure.confirming import confirm_erasure, decide_quarantine, withdraw_erasure
from stillhouse.erasure.forgetting import settle_erasures
from stillhouse.erasure.models import Erasure, Quarantine
from stillhouse.erasure.searching import start_search
from stillhouse.jobs.models import CANCELLED, Job
from stillhouse.publishing.actions import publish
from stillhouse.training.actions import start_run
from stillhouse.training.models import TrainingRun
from stillhouse.usage.models import KeptExchange
from tests.registry import approved, available_base, make_ready
from tests.web.test_dataset_changes import checked, inputs, made
from tests.workers.data.files import zip_of
from tests.world import World, chat_row, jsonl
from workers.contract import DeriveSpec, DropDuplicates, Filter
from workers.data.derive import derive

pytestmark = pytest.mark.django_db
SECRET = "Jane.Doe@example.com"
ROWS = [
    chat_row("Who pays?", "The tenant pays."),
    chat_row("Write to whom?", "Write to jane.doe@EXAMPLE.com before May."),
    chat_row("How long is the notice period?", "Three months to the end of a quarter."),
    {"messages": [{"role": "user", "content": "Nobody answers jane.doe@example.com"}]},
]


def searched(world: World, folder: Path, **asked: Any) -> Erasure:
    """A search whose dry runs have been made by the workers' code."""
    erasure = start_search(
        by=world.expert, **{"dataset": None, "text": SECRET, "why": "Ticket 4711", **asked}
    )
    for finding in erasure.findings.select_related("trial__job"):
        worker = world.worker(finding.trial.job)
        worker.claim()
        files = inputs(worker, folder)
        result = derive(
            DeriveSpec.model_validate(worker.claim_answer["spec"]), sources=[files["source-0"]], out=folder
        )
        assert worker.post("finish", {"result": result.model_dump(mode="json")}).status_code == 200
    return erasure


def trained_on(data: DatasetVersion, world: World) -> AdapterVersion:
    """An approved version whose run is of this data."""
    version = approved(world.expert, world.lead)
    DatasetVersion.objects.filter(pk=version.run.data_id).update(purged_at=timezone.now())  # it has no file
    TrainingRun.objects.filter(pk=version.run_id).update(data=data)
    return AdapterVersion.objects.get(pk=version.pk)


def over(erasure: Erasure) -> None:
    Erasure.objects.filter(pk=erasure.pk).update(bytes_due_at=timezone.now() - timedelta(seconds=1))
    settle_erasures()
    erasure.refresh_from_db()


def everything_stored() -> str:
    """What the database says about datasets, jobs and erasures, as one text."""
    tables = (Job, DatasetVersion, DatasetReport, Trial, Erasure, AuditEvent)
    rows = [{"table": table.__name__, **row} for table in tables for row in table.objects.values()]
    return "\n".join(json.dumps(row, default=str, ensure_ascii=False).lower() for row in rows)


def test_a_search_finds_rows_in_every_version_and_those_with_errors(world: World, tmp_path: Path) -> None:
    one = checked(world, tmp_path, world.dataset(rows=ROWS))
    two = made(world, tmp_path, derive_version(by=world.expert, version=one, operations=[DropDuplicates()]))
    other = checked(world, tmp_path, world.dataset(rows=ROWS[:1], name="Other"))
    erasure = searched(world, tmp_path)
    found = {each.version_id: (each.rows, each.in_error) for each in erasure.findings.all()}
    assert found == {one.pk: (1, 1), two.pk: (1, 0), other.pk: (0, 0)}
    page = world.client(world.expert).get(f"/w/acme/erasures/{erasure.pk}/").content.decode()
    assert "1 row, and 1 with errors of 4" in page and "A lead of the workspace decides" in page
    assert "jane.doe@EXAMPLE.com before May" in page
    narrow = searched(world, tmp_path, dataset=other.dataset)
    assert [each.version_id for each in narrow.findings.all()] == [other.pk]


def test_rows_go_with_their_bytes_and_nothing_stored_says_the_text(world: World, tmp_path: Path) -> None:
    one = checked(world, tmp_path, world.dataset(rows=ROWS))
    named = derive_version(by=world.expert, version=one, operations=[Filter(contains="jane.doe", keep=False)])
    clean = made(world, tmp_path, named)
    erasure = searched(world, tmp_path, dataset=one.dataset)
    confirm_erasure(by=world.lead, erasure=erasure, remade=[one.pk])
    one.refresh_from_db()
    assert one.erased_at and blobs.exists(one.sha256), "the grace period"
    with pytest.raises(Conflict, match="were erased"):
        derive_version(by=world.expert, version=one, operations=[DropDuplicates()])
    with pytest.raises(Conflict, match="were erased"):
        start_run(by=world.expert, adapter_name="a", base=available_base(), data=one)
    without = made(world, tmp_path, one.dataset.versions.get(number=3))
    assert without.report.valid == 2

    over(erasure)
    assert erasure.state == "erased"
    one.refresh_from_db()
    assert one.purged_at and not blobs.exists(one.sha256) and not blobs.exists(one.rows_sha256)
    assert blobs.exists(clean.sha256) and blobs.exists(without.sha256)
    assert [row for row in everything_stored().splitlines() if "jane.doe" in row] == []
    client = world.client(world.lead)
    for address in (
        f"datasets/{one.dataset_id}/versions/1/",
        f"datasets/{one.dataset_id}/",
        f"erasures/{erasure.pk}/",
    ):
        page = client.get(f"/w/acme/{address}")
        assert page.status_code == 200 and "jane" not in page.content.decode().lower()
    settle_erasures()
    with pytest.raises(UserError, match="whose rows were erased"):
        world.dataset(rows=ROWS)
    assert not blobs.exists(one.sha256), "what came back was removed again"


def test_bytes_that_another_workspace_has_too_stay(world: World, tmp_path: Path) -> None:
    one = checked(world, tmp_path, world.dataset(rows=ROWS))
    theirs = world.dataset(rows=ROWS, by=world.outsider)
    assert theirs.sha256 == one.sha256
    erasure = searched(world, tmp_path)
    confirm_erasure(by=world.lead, erasure=erasure)
    over(erasure)
    one.refresh_from_db()
    assert one.purged_at and blobs.exists(theirs.sha256)


def test_what_was_trained_on_them_serves_nobody_until_a_lead_decides(world: World, tmp_path: Path) -> None:
    one = checked(world, tmp_path, world.dataset(rows=ROWS))
    version = trained_on(one, world)
    make_ready(version)
    publish(by=world.lead, alias_name="clauses", version=version)
    erasure = searched(world, tmp_path, dataset=one.dataset)
    client = world.client(world.lead)
    page = client.get(f"/w/acme/erasures/{erasure.pk}/").content.decode()
    assert "<strong>clauses</strong> stops answering" in page
    assert client.post(f"/w/acme/erasures/{erasure.pk}/confirm/").status_code == 302
    version.refresh_from_db()
    assert version.state == "quarantined"
    assert (
        "In quarantine: it answers nobody" in client.get(f"/w/acme/versions/{version.pk}/").content.decode()
    )
    with pytest.raises(UserError, match="quarantined"):
        publish(by=world.lead, alias_name="other", version=version)

    assert "quarantined" in client.get("/w/acme/aliases/").content.decode()
    decide = {"version": version.pk, "decision": "keep", "reason": "Retrained without her."}
    url = f"/w/acme/erasures/{erasure.pk}/quarantine/"
    assert client.post(url, {**decide, "reason": " "}).status_code == 400
    assert client.post(url, decide).status_code == 302
    version.refresh_from_db()
    assert version.state == "approved" and client.post(url, decide).status_code == 409


def test_a_retired_version_loses_its_files_though_an_alias_has_nothing_else(
    world: World, tmp_path: Path
) -> None:
    one = checked(world, tmp_path, world.dataset(rows=ROWS))
    version = trained_on(one, world)
    make_ready(version)
    publish(by=world.lead, alias_name="clauses", version=version)
    erasure = searched(world, tmp_path, dataset=one.dataset)
    confirm_erasure(by=world.lead, erasure=erasure)
    held = Quarantine.objects.get(version=version)
    file = blobs.put(b"weights of the version")
    body = {**version.manifest_body, "files": [{"name": "w", "size": file.size, "sha256": file.sha256}]}
    AdapterVersion.objects.filter(pk=version.pk).update(manifest_body=body)
    decide_quarantine(by=world.lead, quarantine=held, decision="retire", reason="Trained anew.")
    settle_erasures()
    assert blobs.exists(file.sha256), "within the grace period"
    over(erasure)
    assert not blobs.exists(file.sha256)
    version.refresh_from_db()
    assert version.state == "retired" and version.manifest_body["golden"] == []


def test_a_version_made_without_them_names_the_rows_that_adapters_are_evaluated_on(
    world: World, tmp_path: Path
) -> None:
    one = checked(world, tmp_path, world.dataset(rows=ROWS))
    held, gone = (
        checked(world, tmp_path, world.dataset(rows=rows, name=name))
        for name, rows in (("Held", ROWS[:1]), ("Gone", ROWS[1:2]))
    )
    for eval_data in (held, gone):
        start_run(by=world.expert, adapter_name="a", base=available_base(), data=one, eval_data=eval_data)
    confirm_erasure(by=world.lead, erasure=searched(world, tmp_path), remade=[one.pk])
    spec = DeriveSpec.model_validate(one.dataset.versions.get(number=2).job.spec)
    assert [other.sha256 for other in spec.others] == [held.trained_sha256]


def test_rows_go_by_the_file_that_they_came_in(world: World, tmp_path: Path) -> None:
    body = zip_of({"march.jsonl": jsonl(ROWS[:2]), "april.jsonl": jsonl(ROWS[2:3])})
    upload = world.upload(body, dataset=create_dataset(by=world.expert, name="Months"), filename="months.zip")
    one = checked(world, tmp_path, upload)
    erasure = searched(world, tmp_path, text="", file="march.jsonl")
    assert [(each.rows, each.in_error) for each in erasure.findings.all()] == [(2, 0)]
    confirm_erasure(by=world.lead, erasure=erasure, remade=[one.pk])
    without = made(world, tmp_path, one.dataset.versions.get(number=2))
    assert without.report.valid == 1
    over(erasure)
    assert not blobs.exists(one.sha256) and blobs.exists(without.rows_sha256)
    page = world.client(world.lead).get(f"/w/acme/erasures/{erasure.pk}/").content.decode()
    assert "The bytes are gone" in page and "march.jsonl" not in page


def test_it_is_taken_back_within_the_grace_period(world: World, tmp_path: Path) -> None:
    one = checked(world, tmp_path, world.dataset(rows=ROWS))
    version = trained_on(one, world)
    run = start_run(by=world.expert, adapter_name="next", base=available_base(), data=one)
    erasure = searched(world, tmp_path)
    confirm_erasure(by=world.lead, erasure=erasure, remade=[one.pk])
    run.job.refresh_from_db()
    assert run.job.state == CANCELLED
    withdraw_erasure(by=world.lead, erasure=erasure)
    one.refresh_from_db()
    version.refresh_from_db()
    assert one.erased_at is None and version.state == "approved"
    assert [each.made.job.state for each in erasure.findings.exclude(made=None) if each.made] == [CANCELLED]
    over(erasure)
    assert blobs.exists(one.sha256) and erasure.state == "withdrawn"
    with pytest.raises(Conflict):
        withdraw_erasure(by=world.lead, erasure=erasure)


def test_a_run_that_still_ends_is_quarantined_too(world: World, tmp_path: Path) -> None:
    one = checked(world, tmp_path, world.dataset(rows=ROWS))
    erasure = searched(world, tmp_path)
    confirm_erasure(by=world.lead, erasure=erasure)
    late = trained_on(one, world)
    settle_erasures()
    late.refresh_from_db()
    assert late.state == "quarantined"


def test_two_erasures_of_one_version_are_both_decided_on(world: World, tmp_path: Path) -> None:
    one = checked(world, tmp_path, world.dataset(rows=ROWS))
    version = trained_on(one, world)
    first, second = searched(world, tmp_path), searched(world, tmp_path, text="tenant")
    for erasure in (first, second):
        confirm_erasure(by=world.lead, erasure=erasure)
    for erasure, state in ((first, "quarantined"), (second, "approved")):
        held = Quarantine.objects.get(erasure=erasure, version=version)
        decide_quarantine(by=world.lead, quarantine=held, decision="keep", reason="Checked.")
        version.refresh_from_db()
        assert version.state == state


def test_a_version_that_cannot_be_read_is_named_and_goes_on_request(world: World, tmp_path: Path) -> None:
    one = checked(world, tmp_path, world.dataset(rows=ROWS[:1]))
    bad = world.upload(b"PK\x03\x04 no archive", dataset=one.dataset, filename="rows.zip")
    Job.objects.filter(pk=bad.job_id).update(state="failed")
    erasure = start_search(by=world.expert, dataset=None, text=SECRET, why="Ticket")
    with pytest.raises(Conflict, match="not ended"):
        confirm_erasure(by=world.lead, erasure=erasure)
    Job.objects.filter(pk__in=erasure.findings.values("trial__job")).update(state="failed")
    with pytest.raises(UserError, match="Nothing was found"):
        confirm_erasure(by=world.lead, erasure=erasure)
    confirm_erasure(by=world.lead, erasure=erasure, unread=True)
    over(erasure)
    assert not blobs.exists(bad.sha256)


def test_a_version_that_came_meanwhile_is_not_overlooked(world: World, tmp_path: Path) -> None:
    checked(world, tmp_path, world.dataset(rows=ROWS))
    erasure = searched(world, tmp_path)
    checked(world, tmp_path, world.dataset(rows=ROWS[1:]))
    with pytest.raises(Conflict, match="come since the search"):
        confirm_erasure(by=world.lead, erasure=erasure)
    world.dataset(rows=ROWS[2:])
    with pytest.raises(Conflict, match="still being checked"):
        start_search(by=world.expert, dataset=None, text=SECRET, why="Ticket")


def test_kept_prompts_that_hold_the_text_go_at_once(world: World, tmp_path: Path) -> None:
    def kept(prompt: str, by: Membership) -> KeptExchange:
        now = timezone.now()
        return KeptExchange.objects.create(
            workspace=by.workspace, alias="a", served="a@1", prompt=prompt, answers="[]", at=now,
            expires_at=now + timedelta(days=1),
        )  # fmt: skip

    checked(world, tmp_path, world.dataset(rows=ROWS))
    gone, stays, theirs = (
        kept(f"mail {SECRET}", world.lead), kept("nothing", world.lead), kept(SECRET, world.outsider)
    )  # fmt: skip
    confirm_erasure(by=world.lead, erasure=searched(world, tmp_path))
    left = set(KeptExchange.objects.values_list("pk", flat=True))
    assert gone.pk not in left and {stays.pk, theirs.pk} <= left


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"why": "x"}, "nothing_said"),
        ({"text": "ab", "why": "x"}, "too_short"),
        ({"text": "a" * 1001, "why": "x"}, "too_long"),
        ({"text": "jane"}, "why_missing"),
        ({"text": "jane", "why": "x"}, "nothing_there"),
    ],
)
def test_bad_searches_are_refused_in_words(world: World, asked: dict[str, str], code: str) -> None:
    page = world.client(world.expert).post("/w/acme/erasures/", asked)
    assert page.status_code == 400 and code in page.content.decode()
    assert asked.get("text", "jane") in page.content.decode() or code == "nothing_said"


def test_only_leads_erase_and_outsiders_see_nothing(world: World, tmp_path: Path) -> None:
    one = checked(world, tmp_path, world.dataset(rows=ROWS))
    erasure = searched(world, tmp_path)
    for call in (confirm_erasure, withdraw_erasure):
        with pytest.raises(UserError, match="may not"):
            call(by=world.expert, erasure=erasure)
        with pytest.raises(NotFound):
            call(by=world.outsider, erasure=erasure)
    with pytest.raises(NotFound):
        start_search(by=world.outsider, dataset=one.dataset, text=SECRET, why="x")
    theirs = world.client(world.outsider).get(f"/w/globex/erasures/{erasure.pk}/")
    assert theirs.status_code == 404
