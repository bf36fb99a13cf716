"""Claims: one winner, a lease in the time of the database, the same claim again."""

from datetime import timedelta

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.utils import timezone

from stillhouse.jobs.actions import finish_job, reap_lost_leases, report_job
from stillhouse.jobs.claiming import Claimed, claim_job
from stillhouse.jobs.errors import Refused
from stillhouse.jobs.models import Job
from tests.registry import at_once
from tests.web.attempts import claimed, queued, refusal, report
from tests.world import World

pytestmark = pytest.mark.django_db


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
