"""Leases that run out: the job goes back, and the attempt that lost it is refused from then on."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db.models.functions import Now
from django.utils import timezone

from stillhouse.jobs.actions import (
    already_finished,
    check_token,
    finish_job,
    hold_for_finish,
    reap_lost_leases,
    report_job,
)
from stillhouse.jobs.claiming import Claimed, claim_job
from stillhouse.jobs.errors import Refused
from stillhouse.jobs.models import Checkpoint, Job, Outbox
from tests.registry import at_once
from tests.web.attempts import OURS, claimed, failure_of, lose, queued, refusal, report
from tests.world import World

pytestmark = pytest.mark.django_db


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


def test_failures_count_from_the_last_attempt_that_got_far(world: World) -> None:
    """A run of days meets more than three faults; what leaves no checkpoint is given up all the same."""
    job = queued(world)

    def lost_after_hours(attempt: int, *, kept: bool) -> str:
        claim_job(job_id=job.pk, worker="worker-1")
        Job.objects.filter(pk=job.pk).update(started_at=Now() - timedelta(hours=2))
        if kept:
            Checkpoint.objects.create(job=job, attempt=attempt, step=attempt * 100, files=[])
        lose(job)
        reap_lost_leases()
        job.refresh_from_db()
        return failure_of(job).message

    for attempt in (1, 2, 3, 4):
        assert "failure 1 of 3" in lost_after_hours(attempt, kept=True)
        assert job.state == "queued"
    assert "failure 2 of 3" in lost_after_hours(5, kept=False)
    assert "failure 3 of 3" in lost_after_hours(6, kept=False) and job.state == "failed"


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
