"""Jobs: one winner per claim, fencing, leases, retries, cancelling."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.models.functions import Now
from django.utils import timezone

from stillhouse.audit.models import AuditEvent
from stillhouse.audit.queries import verify_chain
from stillhouse.core.errors import NotFound
from stillhouse.jobs.actions import (
    already_finished,
    check_token,
    finish_job,
    hold_for_finish,
    queue_job,
    reap_lost_leases,
    report_job,
)
from stillhouse.jobs.claiming import Claimed, claim_job
from stillhouse.jobs.control import request_cancel
from stillhouse.jobs.errors import Refused
from stillhouse.jobs.models import Job, Kind, Metric, Outbox
from stillhouse.jobs.queries import curve
from tests.registry import at_once
from tests.world import World
from workers.contract import JobFailure, MetricPoint, ReportRequest

pytestmark = pytest.mark.django_db

T = TypeVar("T")
OURS = JobFailure(fault="platform", code="engine_died", message="The engine died.")
THEIRS = JobFailure(fault="user", code="bad_rows", message="Row 3 has no answer.")


def queued(world: World, **options: Any) -> Job:
    return queue_job(
        workspace=world.expert.workspace,
        kind=Kind.VALIDATE,
        queue="cpu",
        subject="dv_1",
        spec={"format": "jsonl"},
        by=world.expert.user,
        **options,
    )


def claimed(world: World) -> Claimed:
    return claim_job(job_id=queued(world).pk, worker="worker-1")


def test_a_lost_attempt_ended_with_its_lease_however_late_that_is_noticed(world: World) -> None:
    """A workspace does not pay for the hours in which no keeper ran."""
    claim = claimed(world)
    over = timezone.now() - timedelta(hours=5)
    Job.objects.filter(pk=claim.job.pk).update(lease_until=over)
    claim.job.attempts.update(started_at=over - timedelta(minutes=10))
    assert reap_lost_leases() == 1
    assert claim.job.attempts.get().ended_at == over


def test_a_database_whose_clock_was_set_back_still_misses_a_lost_worker(world: World) -> None:
    claim = claimed(world)
    ahead = timezone.now() + timedelta(hours=2)
    row = Job.objects.filter(pk=claim.job.pk)
    row.update(reported_at=ahead, lease_until=ahead + timedelta(seconds=60))
    claim.job.attempts.update(started_at=ahead)
    assert reap_lost_leases() == 0
    lease = row.get().lease_until
    assert lease and lease < timezone.now() + timedelta(minutes=5), "and not two hours from now"
    row.update(lease_until=Now() - timedelta(seconds=1))
    assert reap_lost_leases() == 1
    assert claim.job.attempts.get().ended_at == ahead, "no workspace is owed time"


def test_the_same_claim_again_gets_the_same_attempt(world: World) -> None:
    """Its answer was lost on the way: nobody else has the job, and the worker does not know that it has."""
    job = queued(world)
    first = claim_job(job_id=job.pk, worker="worker-1", key="k" * 32)
    Job.objects.filter(pk=job.pk).update(lease_until=Now() + timedelta(seconds=1))
    again = claim_job(job_id=job.pk, worker="worker-1", key="k" * 32)
    assert again.token == first.token and again.job.attempt == 1
    job.refresh_from_db()
    assert job.lease_until and job.lease_until > timezone.now() + timedelta(seconds=30), "counted from now"
    assert job.attempts.count() == 1
    for worker, key in (("worker-1", "l" * 32), ("worker-2", "k" * 32), ("worker-1", "")):
        with pytest.raises(Refused, match="running"):
            claim_job(job_id=job.pk, worker=worker, key=key)
    report_job(job_id=job.pk, token=again.token, report=report())
    finish_job(job_id=job.pk, token=again.token)
    with pytest.raises(Refused, match="succeeded"):
        claim_job(job_id=job.pk, worker="worker-1", key="k" * 32)


def test_a_key_gives_each_attempt_a_token_of_its_own(world: World) -> None:
    job = queued(world)
    first = claim_job(job_id=job.pk, worker="worker-1", key="k" * 32)
    Job.objects.filter(pk=job.pk).update(lease_until=Now() - timedelta(seconds=1))
    assert reap_lost_leases() == 1
    second = claim_job(job_id=job.pk, worker="worker-1", key="k" * 32)
    assert second.job.attempt == 2 and second.token != first.token
    with pytest.raises(Refused, match="stale_token"):
        report_job(job_id=job.pk, token=first.token, report=report())


@pytest.mark.django_db(transaction=True)
def test_equal_claims_at_once_get_one_attempt(world: World) -> None:
    job = queued(world)
    calls = [lambda: claim_job(job_id=job.pk, worker="worker-1", key="k" * 32)] * 3
    claims = at_once(*calls, lambda: claim_job(job_id=job.pk, worker="worker-2", key="l" * 32))
    won = [claim for claim in claims if isinstance(claim, Claimed)]
    assert len({claim.token for claim in won}) == 1 and len(won) in (1, 3), claims
    assert all(isinstance(claim, Refused) for claim in claims if claim not in won)
    assert Job.objects.get(pk=job.pk).attempts.count() == 1


def report(token: str = "", **said: Any) -> ReportRequest:
    return ReportRequest(token=token, **said)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value.code


def failure_of(job: Job) -> JobFailure:
    return JobFailure.model_validate(job.failure)


def lose(job: Job) -> None:
    """Let the lease run out, as if the worker had been silent for long enough."""
    Job.objects.filter(pk=job.pk).update(lease_until=Now() - timedelta(seconds=1))


def test_a_job_and_its_doorbell_are_written_together_or_not_at_all(world: World) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        queued(world)
        raise ZeroDivisionError
    assert not Job.objects.exists() and not Outbox.objects.exists()
    job = queued(world)
    assert job.state == "queued" and Outbox.objects.get().job == job


def test_a_claim_gives_the_job_a_lease_in_the_time_of_the_database(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = timezone.now() + timedelta(hours=2)
    monkeypatch.setattr(timezone, "now", lambda: wrong)
    job = claimed(world).job
    with connection.cursor() as cursor:
        cursor.execute("SELECT extract(epoch FROM lease_until - now()) FROM jobs_job WHERE id = %s", [job.pk])
        [seconds] = cursor.fetchone()
    assert 55 < seconds <= 61
    assert (job.state, job.attempt, job.worker) == ("running", 1, "worker-1")


def test_the_token_is_not_stored(world: World) -> None:
    taken = claimed(world)
    assert taken.token not in str(Job.objects.filter(pk=taken.job.pk).values())


def test_a_second_claim_is_refused(world: World) -> None:
    job = claimed(world).job
    assert refusal(lambda: claim_job(job_id=job.pk, worker="worker-2")) == "not_claimable"
    assert refusal(lambda: claim_job(job_id="job_none", worker="worker-2")) == "unknown_job"
    job.refresh_from_db()
    assert (job.worker, job.attempt) == ("worker-1", 1)


@pytest.mark.django_db(transaction=True)
def test_of_three_claims_at_once_one_wins(world: World) -> None:
    for _ in range(10):
        job = queued(world)

        def claim(job: Job = job) -> str:
            try:
                claim_job(job_id=job.pk, worker="worker")
            except Refused as error:
                return error.code
            return "won"

        assert sorted(at_once(claim, claim, claim)) == ["not_claimable", "not_claimable", "won"]
        job.refresh_from_db()
        assert job.attempt == 1


def test_a_report_is_stored_and_renews_the_lease(world: World) -> None:
    taken = claimed(world)
    Job.objects.filter(pk=taken.job.pk).update(lease_until=Now() + timedelta(seconds=1))
    said = report(
        phase="training", message="Half-way", step=5, total_steps=10, eta_seconds=30.0, log_tail="a\nb"
    )
    assert report_job(job_id=taken.job.pk, token=taken.token, report=said) == "continue"
    job = Job.objects.get(pk=taken.job.pk)
    assert (job.phase, job.message, job.step, job.progress, job.eta_seconds) == (
        "training",
        "Half-way",
        5,
        0.5,
        30.0,
    )
    assert (
        job.lease_until
        and job.lease_until > timezone.now() + timedelta(seconds=30)
        and job.log_tail == "a\nb"
    )


def test_the_last_word_on_a_step_counts(world: World) -> None:
    taken = claimed(world)

    def tell(*points: tuple[int, float]) -> None:
        metrics = [MetricPoint(step=step, values={"loss": loss}) for step, loss in points]
        report_job(job_id=taken.job.pk, token=taken.token, report=report(metrics=metrics))

    tell((1, 3.0), (2, 2.5), (2, 2.4))
    tell((2, 2.0), (3, 1.5))
    assert [(point["step"], point["loss"]) for point in curve(taken.job)] == [(1, 3.0), (2, 2.0), (3, 1.5)]
    assert curve(taken.job, after=2) == [{"step": 3, "attempt": 1, "loss": 1.5}]
    assert curve(taken.job, attempt=2) == []
    assert Metric.objects.count() == 3


@pytest.mark.parametrize(("kind", "shown"), [(Kind.TRAIN, 9), (Kind.VALIDATE, 4)])
def test_a_report_that_the_network_held_up_takes_no_training_back(
    world: World, kind: Kind, shown: int
) -> None:
    """A check counts its rows anew in each phase, so there the last word counts."""
    taken = claimed(world)
    Job.objects.filter(pk=taken.job.pk).update(kind=kind)
    for step in (9, 4):
        metrics = [MetricPoint(step=step, values={"loss": 1.0 / step})]
        report_job(job_id=taken.job.pk, token=taken.token, report=report(step=step, metrics=metrics))
    assert Job.objects.get(pk=taken.job.pk).step == shown
    assert [point["step"] for point in curve(taken.job)] == [4, 9]


def test_what_postgres_cannot_hold_does_not_break_a_report(world: World) -> None:
    taken = claimed(world)
    said = report(
        phase="a\0b",
        log_tail="x\0" * 10,
        eta_seconds=float("inf"),
        step=2**40,
        metrics=[MetricPoint(step=1, values={"loss": float("nan"), "learning_rate": 0.1})],
    )
    report_job(job_id=taken.job.pk, token=taken.token, report=said)
    job = Job.objects.get(pk=taken.job.pk)
    assert job.phase == "a�b" and job.eta_seconds is None
    assert curve(job) == [{"step": 1, "attempt": 1, "learning_rate": 0.1}]


def test_a_stale_token_is_refused_everywhere(world: World) -> None:
    taken = claimed(world)
    lose(taken.job)
    assert reap_lost_leases() == 1
    again = claim_job(job_id=taken.job.pk, worker="worker-2")
    calls: list[Callable[[], object]] = [
        lambda: report_job(job_id=taken.job.pk, token=taken.token, report=report()),
        lambda: check_token(job_id=taken.job.pk, token=taken.token),
        lambda: hold_for_finish(job_id=taken.job.pk, token=taken.token, uploaded=0),
        lambda: finish_job(job_id=taken.job.pk, token=taken.token),
        lambda: finish_job(job_id=taken.job.pk, token="", failure=OURS),
    ]
    assert {refusal(call) for call in calls} == {"stale_token"}
    assert not already_finished(job_id=taken.job.pk, token=taken.token)
    assert report_job(job_id=taken.job.pk, token=again.token, report=report()) == "continue"
    assert finish_job(job_id=taken.job.pk, token=again.token)


def test_a_lost_lease_goes_back_to_the_queue_with_a_new_doorbell(world: World) -> None:
    taken = claimed(world)
    assert reap_lost_leases() == 0
    Outbox.objects.all().delete()
    lose(taken.job)
    assert reap_lost_leases() == 1 and reap_lost_leases() == 0
    job = Job.objects.get(pk=taken.job.pk)
    assert (job.state, job.lease_until, job.token_digest) == ("queued", None, "")
    assert Outbox.objects.get(sent_at=None).job == job
    assert failure_of(job).code == "worker_lost" and "worker-1 stopped reporting" in failure_of(job).message
    # The worker that was asleep wakes up, before anybody else took the job.
    assert refusal(lambda: finish_job(job_id=job.pk, token=taken.token)) == "stale_token"
    assert refusal(lambda: report_job(job_id=job.pk, token=taken.token, report=report())) == "stale_token"


def test_a_report_after_the_lease_but_before_the_reaper_keeps_the_job(world: World) -> None:
    taken = claimed(world)
    lose(taken.job)
    report_job(job_id=taken.job.pk, token=taken.token, report=report())
    assert reap_lost_leases() == 0


def test_a_worker_lost_three_times_fails_the_job(world: World) -> None:
    job = queued(world)
    for attempt in (1, 2, 3):
        assert claim_job(job_id=job.pk, worker=f"worker-{attempt}").job.attempt == attempt
        lose(job)
        reap_lost_leases()
    job.refresh_from_db()
    assert job.state == "failed" and failure_of(job).code == "worker_lost" and job.finished_at
    assert "failure 3 of 3" in failure_of(job).message
    assert refusal(lambda: claim_job(job_id=job.pk, worker="w")) == "not_claimable"


def test_the_platforms_faults_are_tried_again_and_the_users_are_final(world: World) -> None:
    taken = claimed(world)
    finish_job(job_id=taken.job.pk, token=taken.token, failure=OURS)
    job = Job.objects.get(pk=taken.job.pk)
    assert job.state == "queued" and failure_of(job).code == "engine_died"
    again = claim_job(job_id=job.pk, worker="worker-2")
    finish_job(job_id=job.pk, token=again.token, failure=THEIRS)
    job.refresh_from_db()
    assert (job.state, job.attempt, failure_of(job).message) == ("failed", 2, "Row 3 has no answer.")
    assert AuditEvent.objects.get(action="job.failed").details["code"] == "bad_rows"


def test_success_writes_what_it_means_in_the_same_transaction(world: World) -> None:
    taken = claimed(world)

    def broken(job: Job) -> None:
        Metric.objects.create(job=job, step=99, attempt=1, values={})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        finish_job(job_id=taken.job.pk, token=taken.token, apply=broken)
    job = Job.objects.get(pk=taken.job.pk)
    assert job.state == "running" and not Metric.objects.exists()
    done: list[str] = []
    assert finish_job(job_id=job.pk, token=taken.token, apply=lambda job: done.append(job.pk))
    job.refresh_from_db()
    assert job.state == "succeeded" and job.failure is None and done == [job.pk]


@pytest.mark.parametrize("ending", [{}, {"failure": OURS}, {"failure": THEIRS}])
def test_the_same_finish_again_changes_nothing(world: World, ending: dict[str, Any]) -> None:
    taken = claimed(world)
    assert finish_job(job_id=taken.job.pk, token=taken.token, **ending)
    before = Job.objects.filter(pk=taken.job.pk).values().get()
    assert already_finished(job_id=taken.job.pk, token=taken.token)
    assert not finish_job(job_id=taken.job.pk, token=taken.token, **ending)
    assert Job.objects.filter(pk=taken.job.pk).values().get() == before


@pytest.mark.django_db(transaction=True)
def test_of_two_finishes_at_once_one_counts(world: World) -> None:
    taken = claimed(world)
    done: list[str] = []

    def finish() -> bool:
        return finish_job(job_id=taken.job.pk, token=taken.token, apply=lambda job: done.append(job.pk))

    assert sorted(at_once(finish, finish)) == [False, True] and len(done) == 1


@pytest.mark.django_db(transaction=True)
def test_the_reaper_and_a_finish_do_not_both_win(world: World) -> None:
    for _ in range(8):
        taken = claimed(world)
        lose(taken.job)

        def finish(taken: Claimed = taken) -> str:
            try:
                return str(finish_job(job_id=taken.job.pk, token=taken.token))
            except Refused as error:
                return error.code

        answers = at_once(finish, reap_lost_leases)
        taken.job.refresh_from_db()
        assert (taken.job.state, answers) in [("succeeded", ["True", 0]), ("queued", ["stale_token", 1])]


def test_a_queued_job_is_cancelled_at_once(world: World) -> None:
    job = queued(world)
    request_cancel(by=world.expert, job=job)
    assert (
        job.state == "cancelled" and refusal(lambda: claim_job(job_id=job.pk, worker="w")) == "not_claimable"
    )


def test_a_running_job_is_asked_to_stop_and_stops(world: World) -> None:
    taken = claimed(world)
    request_cancel(by=world.lead, job=taken.job)
    request_cancel(by=world.lead, job=taken.job)
    assert taken.job.state == "running" and taken.job.cancel_requested_at
    assert report_job(job_id=taken.job.pk, token=taken.token, report=report()) == "cancel"
    finish_job(job_id=taken.job.pk, token=taken.token, cancelled=True)
    taken.job.refresh_from_db()
    assert taken.job.state == "cancelled"
    request_cancel(by=world.lead, job=taken.job)
    assert AuditEvent.objects.filter(action="job.cancel_requested").count() == 1


@pytest.mark.parametrize("ending", ["lost", "platform failure"])
def test_a_job_that_should_stop_is_not_tried_again(world: World, ending: str) -> None:
    taken = claimed(world)
    request_cancel(by=world.expert, job=taken.job)
    if ending == "lost":
        lose(taken.job)
        reap_lost_leases()
    else:
        finish_job(job_id=taken.job.pk, token=taken.token, failure=OURS)
    taken.job.refresh_from_db()
    assert taken.job.state == "cancelled"


def test_a_worker_that_stops_of_its_own_accord_gives_the_job_back(world: World) -> None:
    taken = claimed(world)
    finish_job(job_id=taken.job.pk, token=taken.token, cancelled=True)
    taken.job.refresh_from_db()
    assert taken.job.state == "queued" and failure_of(taken.job).code == "worker_stopped"


def test_an_outsider_does_not_cancel(world: World) -> None:
    job = queued(world)
    with pytest.raises(NotFound):
        request_cancel(by=world.outsider, job=job)
    job.refresh_from_db()
    assert job.state == "queued"


def test_the_database_knows_the_states(world: World) -> None:
    job = queued(world)
    for change in ({"state": "asleep"}, {"state": "running", "lease_until": None}):
        with pytest.raises(IntegrityError), transaction.atomic():
            Job.objects.filter(pk=job.pk).update(**change)


def test_the_trail_of_a_job_is_whole(world: World) -> None:
    taken = claimed(world)
    finish_job(job_id=taken.job.pk, token=taken.token)
    assert AuditEvent.objects.filter(action="job.succeeded", object_id=taken.job.pk).count() == 1
    assert verify_chain(world.expert.workspace) is None
