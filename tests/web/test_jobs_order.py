"""Whose turn it is: shares, priorities, free slots; and what the page says of a job that waits."""

from datetime import timedelta

import pytest
from django.db.models.functions import Now

import stillhouse.jobs.outbox
from stillhouse.accounts.actions import create_workspace
from stillhouse.accounts.models import Workspace
from stillhouse.jobs.actions import finish_job, queue_job
from stillhouse.jobs.claiming import claim_job
from stillhouse.jobs.models import QUEUED, Attempt, Job, Kind, Share, Worker
from stillhouse.jobs.outbox import relay_outbox
from stillhouse.jobs.shares import turns
from stillhouse.jobs.timeline import waiting
from tests.world import World

pytestmark = pytest.mark.django_db
QUEUE = "gpu-test"


@pytest.fixture
def rung(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The doorbells that went to the broker, in order."""
    sent: list[str] = []
    monkeypatch.setattr(stillhouse.jobs.outbox, "ring", lambda job_id, queue: sent.append(job_id))
    return sent


def queue(workspace: Workspace, **changes: object) -> Job:
    job = queue_job(workspace=workspace, kind=Kind.TRAIN, queue=QUEUE, subject="run_x", spec={}, by=None)
    Job.objects.filter(pk=job.pk).update(**changes)
    return job


def workspaces(world: World, count: int) -> list[Workspace]:
    return [create_workspace(name=f"W{n}", slug=f"w{n}") for n in range(count)]


def slots(number: int, **changes: object) -> Worker:
    row = {"queue": QUEUE, "slots": number, **changes}
    worker, _ = Worker.objects.update_or_create(name="gpu-1", defaults=row)
    Worker.objects.filter(pk=worker.pk).update(seen_at=Now())
    return worker


def test_workspaces_take_turns_and_within_one_the_order_is_priority_then_age(world: World) -> None:
    a, b = workspaces(world, 2)
    first, second, urgent = queue(a), queue(a), queue(a, priority=5)
    other = queue(b)
    order = turns(QUEUE)
    assert sorted(order[:2]) == sorted([urgent.pk, other.pk])
    assert order[2:] == [first.pk, second.pk]


def test_a_job_that_pauses_after_a_failure_has_no_turn_yet(world: World) -> None:
    [a] = workspaces(world, 1)
    queue(a, due_at=Now() + timedelta(minutes=1))
    ready = queue(a, due_at=Now() - timedelta(minutes=1))
    assert turns(QUEUE) == [ready.pk]


def test_a_workspace_without_minutes_has_no_turn(world: World) -> None:
    a, b = workspaces(world, 2)
    queue(a)
    job = queue(b)
    Share.objects.create(workspace=a, queue=QUEUE, minutes_per_month=0)
    assert turns(QUEUE) == [job.pk]


def test_shares_come_out_as_weighed(world: World, rung: list[str]) -> None:
    """Twenty workspaces with more jobs than get a turn, eight slots; one workspace has twice the weight."""
    many = workspaces(world, 20)
    Share.objects.create(workspace=many[0], queue=QUEUE, weight=2)
    Job.objects.bulk_create(
        [
            Job(workspace=workspace, kind=Kind.TRAIN, queue=QUEUE, subject="r", spec={})
            for workspace in many
            for _ in range(26 if workspace == many[0] else 13)
        ]
    )
    running: list[tuple[Job, str]] = []
    for _ in range(210):
        if len(running) == 8:
            job, token = running.pop(0)
            finish_job(job_id=job.pk, token=token)
            # Every job takes ten minutes.
            Attempt.objects.filter(job=job).update(started_at=Now() - timedelta(minutes=10), ended_at=Now())
        claimed = claim_job(job_id=turns(QUEUE)[0], worker="w")
        running.append((claimed.job, claimed.token))
    served = {w.pk: Attempt.objects.filter(workspace=w).count() for w in many}
    fair = 210 / 21
    assert abs(served[many[0].pk] - 2 * fair) <= 2
    assert all(abs(served[w.pk] - fair) <= 1 for w in many[1:])


def test_only_as_many_doorbells_ring_as_there_are_free_slots(world: World, rung: list[str]) -> None:
    [a] = workspaces(world, 1)
    worker = slots(2)
    jobs = [queue(a) for _ in range(4)]
    assert relay_outbox() == 2 and relay_outbox() == 0
    assert rung == [jobs[0].pk, jobs[1].pk]
    taken = claim_job(job_id=jobs[0].pk, worker="gpu-1")
    assert relay_outbox() == 0
    finish_job(job_id=jobs[0].pk, token=taken.token)
    assert relay_outbox() == 1 and rung[2:] == [jobs[2].pk]
    Worker.objects.filter(pk=worker.pk).update(draining_since=Now())
    assert Job.objects.filter(queue=QUEUE, state=QUEUED).count() == 3


def test_what_comes_late_but_matters_more_rings_first(world: World, rung: list[str]) -> None:
    [a] = workspaces(world, 1)
    slots(0)
    later = queue(a)
    assert relay_outbox() == 0
    urgent = queue(a, priority=3)
    slots(1)
    assert relay_outbox() == 1 and rung == [urgent.pk]
    assert later.pk not in rung


def test_without_any_word_of_a_worker_every_doorbell_rings(world: World, rung: list[str]) -> None:
    [a] = workspaces(world, 1)
    for _ in range(3):
        queue(a)
    assert relay_outbox() == 3


def test_the_page_does_not_believe_a_worker_that_is_silent(world: World) -> None:
    job = queue(world.expert.workspace)
    claim_job(job_id=job.pk, worker="gpu-7")
    row = Job.objects.filter(pk=job.pk)
    assert waiting(row.get()) is None
    row.update(reported_at=Now() - timedelta(seconds=20))
    silent = waiting(row.get())
    assert silent and silent.text.startswith("No word from gpu-7 since ") and silent.position is None
    row.update(lease_until=Now() - timedelta(seconds=20))
    lost = waiting(row.get())
    assert lost and "gpu-7 is lost, and the platform's keeper" in lost.text
    row.update(lease_until=Now() + timedelta(seconds=60), reported_at=Now())
    assert waiting(row.get()) is None


def test_the_page_says_why_a_job_waits_and_for_how_long(world: World) -> None:
    a, b = workspaces(world, 2)
    slots(1)
    done = queue(a)
    token = claim_job(job_id=done.pk, worker="gpu-1").token
    finish_job(job_id=done.pk, token=token)
    Attempt.objects.filter(job=done).update(started_at=Now() - timedelta(minutes=10), ended_at=Now())
    running = queue(a)
    claim_job(job_id=running.pk, worker="gpu-1")
    Job.objects.filter(pk=running.pk).update(eta_seconds=300)
    first, second = queue(b), queue(b)
    assert waiting(running) is None or running.state == QUEUED
    place = waiting(second)
    assert place and (place.position, round(place.starts_in or 0)) == (2, 900)
    assert place.text == "Number 2 in line, starts in about 15 min."
    Worker.objects.update(seen_at=Now() - timedelta(hours=1))
    place = waiting(first)
    assert place and "No gpu-test worker takes work now" in place.text
    Share.objects.create(workspace=b, queue=QUEUE, minutes_per_month=0)
    place = waiting(first)
    assert place and place.position is None and "has used 0 of its 0 minutes" in place.text
