"""Jobs and attempts at them, by the actions that a worker's calls end in."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from stillhouse.jobs.actions import queue_job
from stillhouse.jobs.claiming import Claimed, claim_job
from stillhouse.jobs.errors import Refused
from stillhouse.jobs.models import Job, Kind
from tests.world import World
from workers.contract import JobFailure, ReportRequest

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


def report(token: str = "", **said: Any) -> ReportRequest:
    return ReportRequest(token=token, **said)


def refusal(call: Callable[[], object]) -> str:
    """The code that the call is refused with."""
    with pytest.raises(Refused) as caught:
        call()
    return caught.value.code


def failure_of(job: Job) -> JobFailure:
    return JobFailure.model_validate(job.failure)


def lose(job: Job) -> None:
    """Let the lease run out, as if the worker had been silent for long enough."""
    Job.objects.filter(pk=job.pk).update(lease_until=Now() - timedelta(seconds=1))
