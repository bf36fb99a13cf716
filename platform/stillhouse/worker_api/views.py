"""The calls of workers and agents."""

from django.conf import settings
from django.db import transaction

from stillhouse.core import blobs
from stillhouse.core.errors import UserError
from stillhouse.core.locks import held
from stillhouse.jobs.actions import (
    already_finished,
    check_token,
    claim_job,
    finish_job,
    hold_for_finish,
    report_job,
)
from stillhouse.jobs.errors import Refused
from stillhouse.serving.actions import sync_pool
from stillhouse.worker_api.inputs import inputs_for, spec_for
from stillhouse.worker_api.messages import call
from stillhouse.worker_api.outcomes import check_outputs, prepare, staging_key
from workers.contract import (
    ClaimAnswer,
    ClaimRequest,
    FinishRequest,
    JobFailure,
    PoolReport,
    PoolWanted,
    ReportAnswer,
    ReportRequest,
    UploadGrant,
    UploadsAnswer,
    UploadsRequest,
)


@call(ClaimRequest, token="WORKER_TOKEN")
@transaction.atomic
def claim(message: ClaimRequest, *, job_id: str) -> ClaimAnswer:
    """Take the job. Its inputs are looked up in the same transaction: a claim without an answer is none."""
    claimed = claim_job(job_id=job_id, worker=message.worker)
    job = claimed.job
    return ClaimAnswer.model_validate(
        {
            "job": job.pk,
            "kind": job.kind,
            "attempt": job.attempt,
            "token": claimed.token,
            "lease_seconds": settings.LEASE_SECONDS,
            "report_seconds": settings.REPORT_SECONDS,
            "spec": spec_for(job),
            "inputs": inputs_for(job),
            "subject": job.subject,
        }
    )


@call(ReportRequest, token="WORKER_TOKEN")
def report(message: ReportRequest, *, job_id: str) -> ReportAnswer:
    """Progress, heartbeat, and the question whether to go on."""
    return ReportAnswer(action=report_job(job_id=job_id, token=message.token, report=message))


@call(UploadsRequest, token="WORKER_TOKEN")
def uploads(message: UploadsRequest, *, job_id: str) -> UploadsAnswer:
    """Where the current attempt may put its files."""
    job = check_token(job_id=job_id, token=message.token)
    check_outputs(job, message.files)
    return UploadsAnswer(
        uploads=[
            UploadGrant(name=file.name, url=blobs.put_url(staging_key(job, file.name)))
            for file in message.files
        ]
    )


@call(FinishRequest, token="WORKER_TOKEN")
def finish(message: FinishRequest, *, job_id: str) -> None:
    """End the attempt. The same call again is answered like the first, and changes nothing."""
    if sum((message.result is not None, message.failure is not None, message.cancelled)) != 1:
        raise Refused("bad_request", "Exactly one of result, failure and cancelled ends a job.")
    with held(f"finish:{job_id}"):
        if already_finished(job_id=job_id, token=message.token):
            return
        if message.result is None:
            finish_job(
                job_id=job_id, token=message.token, failure=message.failure, cancelled=message.cancelled
            )
        else:
            _succeed(message, job_id)


def _succeed(message: FinishRequest, job_id: str) -> None:
    """A result that does not hold up fails the attempt, in words, and the job is tried again."""
    uploaded = sum(file.size for file in message.files)
    job = hold_for_finish(job_id=job_id, token=message.token, uploaded=uploaded)
    try:
        finish_job(job_id=job_id, token=message.token, apply=prepare(job, message))
    except UserError as error:
        unsound = JobFailure(fault="platform", code=error.code[:60], message=str(error)[:2000])
        finish_job(job_id=job_id, token=message.token, failure=unsound)
    except Refused as error:
        if error.code != "bad_request":
            raise
        unsound = JobFailure(fault="platform", code="bad_result", message=error.message[:2000])
        finish_job(job_id=job_id, token=message.token, failure=unsound)


@call(PoolReport, token="AGENT_TOKEN")
def sync(message: PoolReport, *, pool: str) -> PoolWanted:
    """What a replica holds, against what it should hold."""
    return sync_pool(pool_name=pool, report=message)
