"""Jobs: their doorbell, reports, ends of every kind, cancelling."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.db.models.functions import Now
from django.utils import timezone

from stillhouse.audit.models import AuditEvent
from stillhouse.audit.queries import verify_chain
from stillhouse.core.errors import NotFound
from stillhouse.jobs.actions import already_finished, finish_job, reap_lost_leases, report_job
from stillhouse.jobs.claiming import claim_job
from stillhouse.jobs.control import request_cancel
from stillhouse.jobs.models import Job, Kind, Metric, Outbox
from stillhouse.jobs.queries import curve
from tests.registry import at_once
from tests.web.attempts import OURS, THEIRS, claimed, failure_of, lose, queued, refusal, report
from tests.world import World
from workers.contract import MetricPoint

pytestmark = pytest.mark.django_db


def test_a_job_and_its_doorbell_are_written_together_or_not_at_all(world: World) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        queued(world)
        raise ZeroDivisionError
    assert not Job.objects.exists() and not Outbox.objects.exists()
    job = queued(world)
    assert job.state == "queued" and Outbox.objects.get().job == job


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
