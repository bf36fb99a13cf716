"""Files and fine-tuning jobs, by the unmodified `openai` package against the whole Django stack."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2 as httpx  # what the `openai` package of today speaks with
import openai
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from stillhouse.accounts.actions import create_key, revoke_key
from stillhouse.accounts.keys import APP_SCOPES, SCOPES, KeyTerms
from stillhouse.accounts.models import ApiKey, Membership
from stillhouse.adapters.models import CANDIDATE
from stillhouse.audit.models import AuditEvent
from stillhouse.datasets.actions import record_report
from stillhouse.datasets.models import Dataset, DatasetVersion
from stillhouse.jobs.checkpoints import drop_checkpoints, record_checkpoint
from stillhouse.jobs.claiming import claim_job
from stillhouse.jobs.models import FAILED, QUEUED, RUNNING, SUCCEEDED, Job, Metric
from stillhouse.openai_api import files, serves
from stillhouse.openai_api.urls import urlpatterns
from stillhouse.training.models import TrainingRun
from tests.registry import DEMO_BASE, available_base, data_version, register, started_run, validation_report
from tests.world import World, anybody, chat_row, jsonl

pytestmark = pytest.mark.django_db
FOR_TRAINING = KeyTerms(scopes=frozenset({"training"}))
BODY = jsonl([chat_row(f"Question {n}", f"Answer {n}") for n in range(12)])


class Django(httpx.BaseTransport):
    """Hands requests to Django in the test's own thread and transaction."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        headers = {name: value for name, value in request.headers.items() if name != "content-type"}
        answer = anybody().generic(
            request.method,
            request.url.raw_path.decode(),
            request.read(),
            request.headers.get("content-type", ""),
            headers=headers,
        )
        return httpx.Response(answer.status_code, headers=dict(answer.items()), content=answer.content)


def client_of(by: Membership, terms: KeyTerms = FOR_TRAINING) -> openai.OpenAI:
    """An app with a key that `by` made."""
    _, secret = create_key(by=by, name="Pipeline", terms=terms)
    return client_with(secret)


def client_with(secret: str) -> openai.OpenAI:
    http = httpx.Client(mounts={"http://testserver": Django()}, follow_redirects=True, trust_env=False)
    return openai.OpenAI(base_url="http://testserver/v1", api_key=secret, http_client=http, max_retries=0)


@pytest.fixture
def client(world: World) -> Iterator[openai.OpenAI]:
    """Of the lead: only leads make keys."""
    with client_of(world.lead) as client:
        yield client


def end_check(version: DatasetVersion, *, valid: int = 12) -> None:
    """What the worker's finish does."""
    record_report(version=version, report=validation_report(valid=valid, with_reasoning=0))
    Job.objects.filter(pk=version.job_id).update(state=SUCCEEDED)


def processed(by: Membership, name: str = "Clauses", *, valid: int = 180) -> DatasetVersion:
    version = data_version(by, name, valid=valid)
    Job.objects.filter(pk=version.job_id).update(state=SUCCEEDED)
    return version


def refused(call: Any, **arguments: Any) -> dict[str, Any]:
    with pytest.raises(openai.APIStatusError) as caught:
        call(**arguments)
    found: dict[str, Any] = caught.value.response.json()["error"]
    assert found["message"] and set(found) == {"message", "type", "param", "code"}
    return found | {"status": caught.value.status_code, "headers": caught.value.response.headers}


def test_a_file_is_a_version_of_the_dataset_called_after_it(
    world: World, client: openai.OpenAI, tmp_path: Path
) -> None:
    (tmp_path / "clauses.jsonl").write_bytes(BODY)
    sent = client.files.create(file=tmp_path / "clauses.jsonl", purpose="fine-tune")
    version = DatasetVersion.objects.get(pk=sent.id)
    assert (str(version), sent.bytes, sent.filename) == ("clauses v1", len(BODY), "clauses.jsonl")
    assert sent.status == "uploaded"
    assert version.created_by == world.lead.user and version.dataset.workspace == world.lead.workspace
    assert client.files.content(sent.id).read() == BODY, "from the store itself"
    end_check(version)
    assert client.files.wait_for_processing(sent.id, poll_interval=0.01).status == "processed"


def test_the_same_bytes_are_the_same_file_and_others_the_next_version(client: openai.OpenAI) -> None:
    first, again = (client.files.create(file=("rows.jsonl", BODY), purpose="fine-tune") for _ in range(2))
    other = client.files.create(file=("rows.jsonl", BODY + BODY[:60]), purpose="fine-tune")
    assert again.id == first.id != other.id
    assert [version.number for version in Dataset.objects.get(name="rows").versions.all()] == [1, 2]


def test_a_file_larger_than_a_part_arrives_whole(client: openai.OpenAI) -> None:
    body = jsonl([chat_row("x" * 2000, str(n)) for n in range(5000)])
    sent = client.files.create(file=("large.jsonl", body), purpose="fine-tune")
    assert client.files.content(sent.id).read() == body


def test_what_is_wrong_with_a_file_is_said(
    world: World, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = client.files.create
    assert refused(create, file=("a.exe", b"MZ"), purpose="fine-tune")["code"] == "unknown_format"
    assert refused(create, file=("a.jsonl", b""), purpose="fine-tune")["code"] == "empty_file"
    wrong = refused(create, file=("a.jsonl", BODY), purpose="batch")
    assert (wrong["code"], wrong["param"], wrong["status"]) == ("invalid_value", "purpose", 400)
    monkeypatch.setattr(files, "MOST_BYTES", 10)
    assert refused(create, file=("a.jsonl", BODY), purpose="fine-tune")["status"] == 413
    none_left = processed(world.lead, "Bad", valid=0)
    assert client.files.retrieve(none_left.pk).status == "error"
    assert refused(client.files.delete, file_id=none_left.pk)["code"] == "file_kept"
    assert not Dataset.objects.filter(name="a").exists()


def test_files_and_jobs_are_listed_a_page_at_a_time(world: World, client: openai.OpenAI) -> None:
    made = [processed(world.lead, f"Set {number}").pk for number in range(5)]
    assert [file.id for file in client.files.list(limit=2)] == made[::-1], "the client follows the pages"
    assert [file.id for file in client.files.list(limit=2, order="asc")] == made
    runs = [started_run(world.expert, adapter_name=f"run-{number}").pk for number in range(3)]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=2)] == runs[::-1]
    assert client.fine_tuning.jobs.list(limit=2).has_more
    assert refused(client.files.list, limit=0)["param"] == "limit"
    assert refused(client.files.list, after="dv_none")["code"] == "not_found"


def test_a_job_from_its_start_to_a_candidate(world: World, client: openai.OpenAI) -> None:
    available_base()
    data, held_out = processed(world.lead), processed(world.lead, "Held out", valid=36)
    jobs = client.fine_tuning.jobs
    job = jobs.create(
        model=DEMO_BASE,
        training_file=data.pk,
        validation_file=held_out.pk,
        suffix="Contract Clauses",
        seed=7,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2, "learning_rate_multiplier": 0.5}},
        },
        extra_body={"stillhouse": {"preset": "thorough", "settings": {"rank": 8}}},
    )
    run = TrainingRun.objects.get(pk=job.id)
    assert (run.started_by, run.adapter_name, run.preset) == (world.lead.user, "contract-clauses", "thorough")
    assert (run.spec.epochs, run.spec.learning_rate, run.spec.seed, run.spec.rank) == (2, 5e-4, 7, 8)
    assert (job.status, job.model, job.seed, job.training_file) == ("queued", DEMO_BASE, 7, data.pk)
    assert job.hyperparameters.n_epochs == 2 and job.hyperparameters.learning_rate_multiplier == 0.5
    assert job.fine_tuned_model is None and job.finished_at is None and job.trained_tokens is None
    claim_job(job_id=run.job_id, worker="gpu-1")
    assert jobs.retrieve(job.id).status == RUNNING
    version = register(run)
    Job.objects.filter(pk=run.job_id).update(state=SUCCEEDED)
    done = jobs.retrieve(job.id)
    assert (done.status, done.fine_tuned_model, done.trained_tokens) == (
        "succeeded",
        version.serving_name,
        9000,
    )
    assert version.state == CANDIDATE, "what an app may start, people decide about"
    started = AuditEvent.objects.get(action="run.started", object_id=run.pk)
    assert started.actor == world.lead.user


def test_a_job_is_paused_resumed_cancelled_and_tried_again(world: World, client: openai.OpenAI) -> None:
    run = started_run(world.expert)
    jobs = client.fine_tuning.jobs
    assert str(jobs.pause(run.pk).status) == "paused"
    assert jobs.resume(run.pk).status == "queued"
    assert jobs.cancel(run.pk).status == "cancelled"
    assert refused(jobs.cancel, fine_tuning_job_id=run.pk)["code"] == "run_ended"
    again = client.post(f"/fine_tuning/jobs/{run.pk}/retry", body={"from_start": True}, cast_to=object)
    assert isinstance(again, dict) and again["status"] == QUEUED


def test_what_failed_says_why_and_events_tell_the_way(world: World, client: openai.OpenAI) -> None:
    run = started_run(world.expert)
    worker = world.worker(run.job)
    worker.claim()
    for step in (1, 2):
        metrics = [{"step": step, "values": {"loss": 3.0 - step}}]
        report = {"phase": "training", "step": step, "total_steps": 5, "metrics": metrics}
        assert worker.post("report", report).status_code == 200
    failure = {"fault": "user", "code": "diverged", "message": "The loss rose. Lower learning_rate."}
    assert worker.post("finish", {"failure": failure}).status_code == 200
    job = client.fine_tuning.jobs.retrieve(run.pk)
    assert job.status == FAILED and job.error is not None
    assert (job.error.code, job.error.message) == ("diverged", failure["message"])
    events = list(client.fine_tuning.jobs.list_events(run.pk, limit=2))
    assert [event.type for event in events] == ["message", "metrics", "metrics", "message", "message"]
    assert events[0].level == "error" and "Lower learning_rate" in events[0].message
    assert [event.data["train_loss"] for event in events[1:3]] == [1.0, 2.0]  # type: ignore[index]
    assert len({event.id for event in events}) == 5


def test_a_page_of_events_reads_no_more_of_the_curve_than_it_shows(
    world: World, client: openai.OpenAI
) -> None:
    """Three points of each moment, and words at one of these moments: no page loses or repeats any."""
    run = started_run(world.expert)
    worker = world.worker(run.job)
    worker.claim()
    began = run.job.attempts.get().started_at
    points = [
        Metric(
            job=run.job, step=step, attempt=1, values={"loss": 1.0, "lr": 0.1} if step != 5 else {"lr": 0.1}
        )
        for step in range(1, 31)
    ]
    for point in Metric.objects.bulk_create(points):
        moment = began + timedelta(seconds=(point.step - 1) // 3)
        Metric.objects.filter(pk=point.pk).update(at=moment)
    with CaptureQueriesContext(connection) as queries:
        page = client.fine_tuning.jobs.list_events(run.pk, limit=4)
    assert [event.data["step"] for event in page.data] == [30, 29, 28, 27]  # type: ignore[index]
    [read] = [sql for query in queries if "'loss'" in (sql := query["sql"])]
    assert "LIMIT 5" in read
    for limit in (1, 4, 7):
        events = list(client.fine_tuning.jobs.list_events(run.pk, limit=limit))
        steps = [event.data["step"] for event in events if event.type == "metrics"]  # type: ignore[index]
        assert steps == [step for step in range(30, 0, -1) if step != 5], "step 5 has no loss to tell"
        assert [event.message for event in events[-2:]] == ["Attempt 1 on worker-1.", "The run is queued."]
    assert refused(client.fine_tuning.jobs.list_events, fine_tuning_job_id=run.pk, after="ftevent-x-step-1")


def test_checkpoints_are_listed_until_nobody_goes_on_from_them(world: World, client: openai.OpenAI) -> None:
    run = started_run(world.expert)
    claimed = claim_job(job_id=run.job_id, worker="gpu-1")
    for step in (5, 10):
        Metric.objects.create(job=run.job, step=step, attempt=1, values={"loss": 3 - step / 10})
        record_checkpoint(job_id=run.job_id, token=claimed.token, step=step, files=[])
    listed = client.fine_tuning.jobs.checkpoints.list
    found = list(listed(run.pk, limit=1))
    assert [point.step_number for point in found] == [10, 5]
    assert [point.metrics.train_loss for point in found] == [2.0, 2.5]
    assert {point.fine_tuning_job_id for point in found} == {run.pk}
    assert [point.id for point in listed(run.pk, after=found[0].id)] == [found[1].id]
    assert not any(point.fine_tuned_model_checkpoint for point in found), "none is ever served"
    assert refused(listed, fine_tuning_job_id=run.pk, after="ftckpt-0")["code"] == "not_found"
    drop_checkpoints(run.job)
    assert listed(run.pk).data == []


def test_what_an_app_notes_about_a_job_stays_with_it(world: World, client: openai.OpenAI) -> None:
    available_base()
    data, jobs = processed(world.lead), client.fine_tuning.jobs
    noted = {"team": "Recht & Verträge", "items": "", "": "no name"}
    wanted = {"model": DEMO_BASE, "training_file": data.pk}
    assert refused(jobs.create, **wanted, metadata=noted)["param"] == "metadata..[key]"
    del noted[""]
    job, other, plain = (jobs.create(**wanted, metadata=each) for each in (noted, {"team": "Sales"}, None))
    assert (jobs.retrieve(job.id).metadata, jobs.retrieve(plain.id).metadata) == (noted, {})
    assert [each.id for each in jobs.list(metadata={"team": "Sales"})] == [other.id]
    assert [each.id for each in jobs.list(metadata={"team": noted["team"], "items": ""})] == [job.id]
    assert [each.id for each in jobs.list(extra_query={"metadata": "null"})] == [plain.id]
    assert len(jobs.list(metadata={}).data) == 3
    assert refused(jobs.list, metadata={"team": "\0"})["param"] == "metadata.team"
    page = world.client(world.expert).get(f"/w/acme/runs/{job.id}/").content.decode()
    assert "Recht &amp; Verträge" in page and "items:" in page


def test_uploads_in_parts_are_refused_with_the_ways_that_are_there(client: openai.OpenAI) -> None:
    create = client.uploads.create
    said = refused(create, bytes=10, filename="a.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    assert (said["status"], said["code"]) == (404, "no_uploads_in_parts")
    assert "files.create" in said["message"] and "512 MiB" in said["message"]
    assert refused(client.uploads.cancel, upload_id="upload_1")["code"] == "no_uploads_in_parts"


def test_data_that_is_still_being_checked_is_worth_another_try(world: World, client: openai.OpenAI) -> None:
    available_base()
    waiting = data_version(world.lead)
    said = refused(client.fine_tuning.jobs.create, model=DEMO_BASE, training_file=waiting.pk)
    assert (said["status"], said["code"], said["param"]) == (409, "file_not_processed", "training_file")
    assert int(said["headers"]["retry-after"]) > 0 and "x-should-retry" not in said["headers"]


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"model": "gpt-4o"}, "unknown_base", "base"),
        ({"training_file": "dv_none"}, "not_found", None),
        ({"hyperparameters": {"n_epochs": 0}}, "bad_setting", "epochs"),
        (
            {"hyperparameters": {"n_epochs": "many"}},
            "invalid_value",
            "hyperparameters.n_epochs.literal['auto']",
        ),
        ({"suffix": "…"}, "bad_name", "adapter_name"),
        ({"metadata": {"team": "x" * 513}}, "invalid_value", "metadata.team"),
        ({"metadata": {"team": "\0"}}, "invalid_value", "metadata.team"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "invalid_value", "metadata"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, "invalid_value", "integrations"),
        ({"method": {"type": "dpo"}}, "invalid_value", "method.type"),
        ({"extra_body": {"stillhouse": {"settings": {"lora_rank": 4}}}}, "unknown_setting", "lora_rank"),
    ],
)
def test_what_is_wrong_with_a_job_is_said(
    world: World, client: openai.OpenAI, changes: dict[str, Any], code: str, param: str | None
) -> None:
    available_base()
    wanted = {"model": DEMO_BASE, "training_file": processed(world.lead).pk, **changes}
    said = refused(client.fine_tuning.jobs.create, **wanted)
    assert (said["code"], said["param"]) == (code, param)
    assert said["headers"]["x-should-retry"] == "false"
    assert not TrainingRun.objects.exists()


def test_only_a_key_for_training_opens_this_door(world: World) -> None:
    key, secret = create_key(by=world.lead, name="App")
    assert set(key.scopes) == set(APP_SCOPES) < set(SCOPES), "an app's key is not for training by itself"
    assert refused(client_with(secret).files.list)["code"] == "missing_scope"
    assert refused(client_with("sk-sh-nonsense").files.list)["status"] == 401
    revoked, secret = create_key(by=world.lead, name="Old", terms=FOR_TRAINING)
    revoke_key(by=world.lead, key=revoked)
    assert refused(client_with(secret).files.list)["code"] == "invalid_api_key"
    orphan = client_of(world.lead)
    Membership.objects.filter(pk=world.lead.pk).delete()
    assert refused(orphan.files.list)["code"] == "key_without_owner"


def test_nobody_sees_or_touches_what_belongs_to_another_workspace(world: World) -> None:
    """Every address, with a good key of another workspace and with none."""
    run, version = started_run(world.expert), processed(world.lead, "Secret")
    _, secret = create_key(by=world.outsider, name="Other", terms=FOR_TRAINING)
    stranger = {"authorization": f"Bearer {secret}"}
    for pattern in urlpatterns:
        subject = run.pk if "job" in str(pattern.name) else version.pk
        address = f"/v1/{pattern.pattern}".replace("<str:id>", subject).replace("<path:rest>", "x/parts")
        method = "get" if pattern.name in ("api_files", "api_jobs", "api_file", "api_job") else None
        for each in [method] if method else ["get", "post"]:
            ask = getattr(anybody(), each)
            assert ask(address).status_code in (401, 405), address
            answer = ask(address, headers=stranger)
            assert answer.status_code in (200, 404, 405), (address, answer.content)
            if answer.status_code == 200:
                assert json.loads(answer.content)["data"] == [], address
    wanted = {"model": DEMO_BASE, "training_file": version.pk}
    assert refused(client_with(secret).fine_tuning.jobs.create, **wanted)["status"] == 404
    run.job.refresh_from_db()
    assert run.job.state == QUEUED and ApiKey.objects.filter(workspace=world.outsider.workspace).count() == 1


def test_the_rest_of_v1_stays_with_the_gateway() -> None:
    mine = [
        "/v1/files",
        "/v1/files/dv_1/content",
        "/v1/fine_tuning/jobs",
        "/v1/fine_tuning/jobs/run_1/events",
        "/v1/uploads",
    ]
    assert all(map(serves, mine))
    assert not any(map(serves, ["/v1/models", "/v1/chat/completions", "/v1/filesystem", "/v1/fine_tuning"]))
