"""What people ask of a job: pause, resume, cancel, try again; and what comes of checkpoints and quotas."""

import json
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import IntegrityError, transaction
from django.db.models.functions import Now
from pytest_django.fixtures import Settings

from stillhouse.audit.models import AuditEvent
from stillhouse.audit.queries import verify_chain
from stillhouse.core import blobs
from stillhouse.core.errors import Conflict, NotFound, UserError
from stillhouse.jobs.actions import finish_job, reap_lost_leases, report_job
from stillhouse.jobs.checkpoints import newest_checkpoint, object_key, remove_dropped_checkpoints
from stillhouse.jobs.claiming import claim_job
from stillhouse.jobs.control import request_cancel, request_pause, resume_job, retry_job
from stillhouse.jobs.errors import Refused
from stillhouse.jobs.models import Attempt, Checkpoint, Job, Metric, Outbox, Share
from stillhouse.jobs.shares import check_quota
from tests.registry import started_run
from tests.web.attempts import OURS, THEIRS
from tests.web.worker_calls import state
from tests.world import Worker, World, fetch, put, sha256
from workers.contract import CHECKPOINT_DAMAGED, ClaimAnswer, MetricPoint, ReportRequest

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def no_pause_after_failures(settings: Settings) -> None:
    settings.RETRY_SECONDS = 0


@pytest.fixture
def job(world: World) -> Job:
    return started_run(world.expert).job


def tell(worker: Worker, step: int, *, loss: float = 1.0, phase: str = "training") -> str:
    """Report a step; returns what the platform answers."""
    points = [MetricPoint(step=step, values={"loss": loss})] if step else []
    report = ReportRequest(token=worker.token, phase=phase, step=step, total_steps=500, metrics=points)
    return report_job(job_id=worker.job_id, token=worker.token, report=report)


def store(worker: Worker, step: int, **bodies: bytes) -> Any:
    """Upload a checkpoint and say so; returns the response."""
    files = {"lora.safetensors": b"lora %d" % step, "state.json": b"{}", **bodies}
    listed = [{"name": name, "size": len(body), "sha256": sha256(body)} for name, body in files.items()]
    granted = worker.post("uploads", {"files": listed, "checkpoint": step}).json()["uploads"]
    for grant in granted:
        put(grant["url"], files[grant["name"]])
    return worker.post("checkpoints", {"step": step, "files": listed})


def claim(world: World, job: Job, name: str = "gpu-1") -> Worker:
    worker = world.worker(job, name=name)
    worker.claim()
    return worker


def actions_of(world: World) -> list[str]:
    rows = AuditEvent.objects.filter(workspace=world.expert.workspace, action__startswith="job.")
    return list(rows.order_by("sequence").values_list("action", flat=True))


# pause and resume --------------------------------------------------------------------------------------


def test_a_pause_is_a_checkpoint_first_and_then_a_stop(world: World, job: Job) -> None:
    worker = claim(world, job)
    tell(worker, 7)
    request_pause(by=world.expert, job=job)
    request_pause(by=world.expert, job=job)
    assert tell(worker, 8) == "checkpoint"
    assert store(worker, 8).status_code == 200
    assert tell(worker, 9) == "cancel"
    assert worker.post("finish", {"cancelled": True}).status_code == 200
    assert state(job) == "paused" and job.pause_requested_at is None and job.finished_at is None
    assert actions_of(world) == ["job.pause_requested", "job.paused"]
    resume_job(by=world.lead, job=job)
    assert state(job) == "queued" and Outbox.objects.filter(job=job, sent_at=None).exists()
    answer = ClaimAnswer.model_validate(world.worker(job, name="gpu-2").claim())
    assert answer.attempt == 2 and answer.checkpoint and answer.checkpoint.step == 8
    assert fetch(answer.checkpoint.files[0].url) == b"lora 8"
    assert state(job) == "running" and (job.resumed_step, job.step) == (8, 8)
    assert verify_chain(world.expert.workspace) is None


def test_a_pause_with_nothing_to_keep_stops_at_once(world: World, job: Job) -> None:
    worker = claim(world, job)
    request_pause(by=world.expert, job=job)
    assert tell(worker, 0, phase="loading") == "cancel"


def test_a_pause_does_not_wait_for_ever_for_a_checkpoint(world: World, job: Job) -> None:
    worker = claim(world, job)
    request_pause(by=world.expert, job=job)
    assert tell(worker, 3) == "checkpoint"
    Job.objects.filter(pk=job.pk).update(pause_requested_at=Now() - timedelta(minutes=3))
    assert tell(worker, 4) == "cancel"


def test_a_checkpoint_from_before_the_pause_is_not_the_one_it_asked_for(world: World, job: Job) -> None:
    worker = claim(world, job)
    tell(worker, 3)
    store(worker, 3)
    Checkpoint.objects.update(created_at=Now() - timedelta(seconds=5))
    request_pause(by=world.expert, job=job)
    assert tell(worker, 4) == "checkpoint"


def test_a_waiting_job_is_paused_at_once_and_cannot_be_claimed(world: World, job: Job) -> None:
    request_pause(by=world.expert, job=job)
    assert state(job) == "paused"
    with pytest.raises(Refused, match="not_claimable"):
        claim_job(job_id=job.pk, worker="w")
    request_cancel(by=world.expert, job=job)
    assert state(job) == "cancelled"


def test_a_pause_can_be_taken_back_while_the_worker_has_not_answered(world: World, job: Job) -> None:
    worker = claim(world, job)
    tell(worker, 3)
    request_pause(by=world.expert, job=job)
    resume_job(by=world.expert, job=job)
    assert tell(worker, 4) == "continue"


@pytest.mark.parametrize("ending", ["lost", "platform failure"])
def test_a_job_that_should_pause_pauses_however_its_attempt_ends(world: World, job: Job, ending: str) -> None:
    worker = claim(world, job)
    request_pause(by=world.expert, job=job)
    if ending == "lost":
        Job.objects.filter(pk=job.pk).update(lease_until=Now() - timedelta(seconds=1))
        reap_lost_leases()
    else:
        finish_job(job_id=job.pk, token=worker.token, failure=OURS)
    assert state(job) == "paused"


def test_a_success_beats_a_pause_that_came_too_late(world: World, job: Job) -> None:
    worker = claim(world, job)
    request_pause(by=world.expert, job=job)
    finish_job(job_id=job.pk, token=worker.token)
    assert state(job) == "succeeded"
    with pytest.raises(Conflict):
        resume_job(by=world.expert, job=job)


# retry -------------------------------------------------------------------------------------------------


def failed(world: World, job: Job, *, steps: int = 5) -> Worker:
    worker = claim(world, job)
    tell(worker, steps)
    store(worker, steps)
    finish_job(job_id=job.pk, token=worker.token, failure=THEIRS)
    assert state(job) == "failed"
    return worker


def test_a_failed_job_is_tried_again_from_its_checkpoint(world: World, job: Job) -> None:
    old = failed(world, job)
    retry_job(by=world.expert, job=job)
    assert state(job) == "queued" and job.failure is None and job.finished_at is None
    answer = ClaimAnswer.model_validate(claim(world, job).claim_answer)
    assert answer.attempt == 2 and answer.beginning == 1 and answer.checkpoint and answer.checkpoint.step == 5
    with pytest.raises(Refused, match="stale_token"):
        finish_job(job_id=job.pk, token=old.token)


def test_a_failed_job_is_tried_again_from_the_start(world: World, job: Job) -> None:
    failed(world, job)
    retry_job(by=world.expert, job=job, from_start=True)
    assert state(job) == "queued" and job.step == 0 and not Metric.objects.filter(job=job).exists()
    answer = ClaimAnswer.model_validate(claim(world, job).claim_answer)
    assert answer.attempt == 2 and answer.beginning == 2 and answer.checkpoint is None


def test_a_cancelled_job_may_be_tried_again_and_a_running_one_may_not(world: World, job: Job) -> None:
    request_cancel(by=world.expert, job=job)
    retry_job(by=world.expert, job=job)
    worker = claim(world, job)
    assert tell(worker, 1) == "continue"
    with pytest.raises(Conflict):
        retry_job(by=world.expert, job=job)


def test_outsiders_ask_in_vain(world: World, job: Job) -> None:
    for call in (request_pause, resume_job, retry_job, request_cancel):
        with pytest.raises(NotFound):
            call(by=world.outsider, job=job)
    assert state(job) == "queued" and actions_of(world) == []


# failures ----------------------------------------------------------------------------------------------


def test_pauses_between_attempts_grow_and_the_third_failure_is_the_last(
    world: World, job: Job, settings: Settings
) -> None:
    settings.RETRY_SECONDS = 10
    waits = []
    for _ in range(2):
        finish_job(job_id=job.pk, token=claim_job(job_id=job.pk, worker="w").token, failure=OURS)
        job.refresh_from_db()
        assert job.due_at
        ended = Attempt.objects.filter(job=job).latest("number").ended_at
        assert ended
        waits.append(round((job.due_at - ended).total_seconds()))
        with pytest.raises(Refused, match="waits a while"):
            claim_job(job_id=job.pk, worker="w")
        Job.objects.filter(pk=job.pk).update(due_at=Now())
    assert waits == [10, 60]
    finish_job(job_id=job.pk, token=claim_job(job_id=job.pk, worker="w").token, failure=OURS)
    assert state(job) == "failed" and job.failure and job.failure["message"] == "The engine died."


def test_a_worker_that_is_stopped_costs_the_job_nothing(world: World, job: Job) -> None:
    for _ in range(5):
        finish_job(job_id=job.pk, token=claim(world, job).token, cancelled=True)
    assert state(job) == "queued" and job.failures == 0
    assert {row.outcome for row in Attempt.objects.filter(job=job)} == {"handed_back"}


# checkpoints -------------------------------------------------------------------------------------------


def test_the_newest_checkpoints_and_the_best_are_kept(world: World, job: Job) -> None:
    worker = claim(world, job)
    for step, loss in ((1, 3.0), (2, 0.5), (3, 2.0), (4, 1.0), (5, 1.5)):
        tell(worker, step, loss=loss)
        store(worker, step)
    kept = Checkpoint.objects.filter(dropped_at=None).values_list("step", flat=True)
    assert list(kept) == [2, 4, 5]
    assert remove_dropped_checkpoints() == 2 and remove_dropped_checkpoints() == 0
    assert blobs.staged_size(object_key(job.pk, 1, 3, "state.json")) is None
    assert blobs.staged_size(object_key(job.pk, 1, 5, "state.json")) == 2


def test_half_a_checkpoint_is_none(world: World, job: Job) -> None:
    worker = claim(world, job)
    files = [{"name": "lora.safetensors", "size": 4, "sha256": "0" * 64}]
    assert worker.post("checkpoints", {"step": 3, "files": files}).status_code == 400
    assert newest_checkpoint(job) is None


def test_after_a_damaged_checkpoint_the_next_attempt_gets_the_one_before_it(world: World, job: Job) -> None:
    worker = claim(world, job)
    for step in (2, 4):
        tell(worker, step)
        store(worker, step)
    finish_job(job_id=job.pk, token=worker.token, failure=OURS)
    second = claim(world, job)
    damaged = OURS.model_copy(update={"code": CHECKPOINT_DAMAGED})
    finish_job(job_id=job.pk, token=second.token, failure=damaged)
    third = claim(world, job)
    assert third.claim_answer["checkpoint"]["step"] == 2
    finish_job(job_id=job.pk, token=third.token, failure=damaged)
    fourth = claim(world, job)
    assert fourth.claim_answer["checkpoint"] is None, "a store that lost everything costs the steps alone"
    job.refresh_from_db()
    assert job.failures == 1, "the job did nothing wrong"
    finish_job(job_id=job.pk, token=fourth.token, failure=damaged)
    job.refresh_from_db()
    assert job.failures == 2, "there was no checkpoint to blame"


def test_a_checkpoint_of_a_lost_attempt_is_refused(world: World, job: Job) -> None:
    old = claim(world, job, "old")
    Job.objects.filter(pk=job.pk).update(lease_until=Now() - timedelta(seconds=1))
    reap_lost_leases()
    new = claim(world, job, "new")
    files = [{"name": "state.json", "size": 2, "sha256": sha256(b"{}")}]
    assert old.post("uploads", {"files": files, "checkpoint": 9}).status_code == 409
    assert old.post("checkpoints", {"step": 9, "files": files}).status_code == 409
    assert store(new, 1).status_code == 200 and store(new, 1).status_code == 200
    assert Checkpoint.objects.get().attempt == 2


def test_a_success_leaves_no_checkpoint(world: World, job: Job) -> None:
    worker = claim(world, job)
    store(worker, 2)
    finish_job(job_id=job.pk, token=worker.token)
    assert remove_dropped_checkpoints() == 1 and not Checkpoint.objects.exists()
    assert blobs.staged_size(object_key(job.pk, 1, 2, "state.json")) is None


def test_the_time_left_is_known_right_after_a_resume(world: World, job: Job) -> None:
    worker = claim(world, job)
    tell(worker, 1)
    tell(worker, 100)
    store(worker, 100)
    Attempt.objects.filter(job=job).update(started_at=Now() - timedelta(seconds=200))
    finish_job(job_id=job.pk, token=worker.token, cancelled=True)
    again = claim(world, job, "gpu-2")
    tell(again, 0, phase="loading")
    job.refresh_from_db()
    assert job.step == 100 and job.eta_seconds and 700 < job.eta_seconds < 900


# quotas ------------------------------------------------------------------------------------------------


def test_minutes_that_are_used_up_stop_the_next_job_in_words(world: World, job: Job) -> None:
    Share.objects.create(workspace=world.expert.workspace, queue="gpu", minutes_per_month=30)
    check_quota(world.expert.workspace, "gpu")
    finish_job(job_id=job.pk, token=claim(world, job).token, cancelled=True)
    Attempt.objects.filter(job=job).update(ended_at=Now() + timedelta(minutes=31))
    with pytest.raises(UserError, match="has used 31 of its 30 minutes on gpu workers") as refused:
        check_quota(world.expert.workspace, "gpu")
    assert refused.value.code == "quota_used_up" and "Ask the operator" in refused.value.next_step
    with pytest.raises(Refused, match="used up its minutes"):
        claim_job(job_id=job.pk, worker="w")
    check_quota(world.outsider.workspace, "gpu")
    check_quota(world.expert.workspace, "cpu")


def test_the_database_allows_one_attempt_at_a_time(world: World, job: Job) -> None:
    claim(world, job)
    with pytest.raises(IntegrityError), transaction.atomic():
        Attempt.objects.create(
            job=job, workspace=job.workspace, queue="gpu", number=2, worker="w", started_at=Now()
        )


# over HTTP and the command line ------------------------------------------------------------------------


def test_the_page_offers_what_the_state_allows(world: World) -> None:
    run = started_run(world.expert)
    page, client = f"/w/acme/runs/{run.pk}/", world.client(world.expert)

    def shown() -> str:
        return client.get(page).content.decode()

    assert "pause-run" in shown() and "retry-run" not in shown()
    assert client.post(f"{page}pause/").status_code == 302
    assert "resume-run" in shown() and "pause-run" not in shown() and "The run is paused" in shown()
    assert (
        client.post(f"{page}resume/").status_code == 302 and client.post(f"{page}cancel/").status_code == 302
    )
    assert "retry-run" in shown() and "cancel-run" not in shown()
    answer = client.post(f"{page}retry/", {"from": "start"}, headers={"accept": "application/json"})
    assert (answer.status_code, answer.json()["state"]) == (200, "queued")
    assert client.post(f"{page}retry/").status_code == 409
    assert client.post(f"{page}priority/", {"priority": "3"}).status_code == 403
    assert world.client(world.lead).post(f"{page}priority/", {"priority": "3"}).status_code == 302
    assert world.client(world.lead).post(f"{page}priority/", {"priority": "99"}).status_code == 400


def test_the_timeline_tells_what_happened_in_words(world: World, job: Job) -> None:
    first = claim(world, job, "gpu-1")
    tell(first, 1)
    tell(first, 400)
    store(first, 400)
    tell(first, 412)
    Job.objects.filter(pk=job.pk).update(lease_until=Now() - timedelta(seconds=1))
    reap_lost_leases()
    second = claim(world, job, "gpu-2")
    tell(second, 401)
    page = world.client(world.expert).get(f"/w/acme/runs/{job.subject}/").content.decode()
    assert "Attempt 1: began on gpu-1, worker lost at step 412." in page
    assert "Attempt 2: resumed from step 400 on gpu-2, at work." in page


def test_a_script_does_what_the_page_does(world: World, job: Job) -> None:
    def run(*arguments: str, by: str = "erin@acme.example") -> dict[str, Any]:
        out = StringIO()
        call_command("run", *arguments, "--as", by, stdout=out)
        answer: dict[str, Any] = json.loads(out.getvalue())
        return answer

    assert run("pause", job.subject)["state"] == "paused"
    assert run("resume", job.subject)["state"] == "queued"
    assert run("cancel", job.subject)["state"] == "cancelled"
    assert run("retry", job.subject, "--from-start")["state"] == "queued"
    with pytest.raises(SystemExit):
        run("pause", job.subject, by="olga@globex.example")
    assert state(job) == "queued"
