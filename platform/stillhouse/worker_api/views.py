"""The calls of workers and agents."""

import logging
import time

from django.conf import settings
from django.db import OperationalError
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST
from psycopg.errors import DiskFull

from stillhouse.core import blobs
from stillhouse.core.errors import UserError
from stillhouse.core.locks import held
from stillhouse.jobs.actions import (
    already_finished,
    check_token,
    finish_job,
    hold_for_finish,
    renew_lease,
    report_job,
    time_to_finish,
)
from stillhouse.jobs.checkpoints import (
    check_files,
    object_key,
    record_checkpoint,
    uploaded,
)
from stillhouse.jobs.claiming import offer, take
from stillhouse.jobs.errors import NoRoom, Refused
from stillhouse.jobs.models import Checkpoint, Job
from stillhouse.jobs.outbox import rings_unheard
from stillhouse.jobs.workers import enrol, hear
from stillhouse.publishing.queries import live_version_ids
from stillhouse.serving.actions import sync_pool
from stillhouse.serving.wanted import ROLLBACK_WINDOW
from stillhouse.worker_api.inputs import inputs_for, spec_for
from stillhouse.worker_api.messages import as_json, bearer, call, parse
from stillhouse.worker_api.outcomes import check_outputs, prepare, staging_key
from workers.contract import (
    CheckpointRequest,
    ClaimAnswer,
    ClaimRequest,
    EnrolAnswer,
    EnrolRequest,
    FinishRequest,
    HelloAnswer,
    HelloRequest,
    InputFile,
    JobFailure,
    PoolReport,
    PoolWanted,
    ReportAnswer,
    ReportRequest,
    StoredCheckpoint,
    UploadGrant,
    UploadsAnswer,
    UploadsRequest,
)

log = logging.getLogger(__name__)


@call(ClaimRequest, token="WORKER_TOKEN")
def claim(message: ClaimRequest, *, job_id: str) -> ClaimAnswer:
    """Take the job. What it took here is logged, and how much of that it worked: the rest it waited, for
    Postgres or for its turn. A worker's own clock counts the way and the queue too."""
    began, worked = time.monotonic(), time.thread_time()
    answer = _claim(message, job_id)
    took, worked = time.monotonic() - began, time.thread_time() - worked
    log.info("job %s: claimed in %.2f ms, %.2f of them at work", job_id, took * 1000, worked * 1000)
    return answer


def _claim(message: ClaimRequest, job_id: str) -> ClaimAnswer:
    """The inputs are looked up before the job is taken: a claim without an answer is none."""
    offered = offer(job_id=job_id, worker=message.worker, key=message.key)
    spec, inputs = spec_for(offered.job), inputs_for(offered.job)
    claimed = take(offered)
    job = claimed.job
    return ClaimAnswer.model_validate(
        {
            "job": job.pk,
            "kind": job.kind,
            "attempt": job.attempt,
            "token": claimed.token,
            "lease_seconds": settings.LEASE_SECONDS,
            "report_seconds": settings.REPORT_SECONDS,
            "spec": spec,
            "inputs": inputs,
            "subject": job.subject,
            "beginning": job.beginning,
            "checkpoint": _stored_checkpoint(job, claimed.checkpoint),
            "checkpoint_seconds": settings.CHECKPOINT_SECONDS,
            "hang_seconds": settings.HANG_SECONDS,
        }
    )


def _stored_checkpoint(job: Job, newest: Checkpoint | None) -> StoredCheckpoint | None:
    if newest is None:
        return None
    files = [
        InputFile(url=blobs.object_url(object_key(job.pk, newest.attempt, newest.step, file["name"])), **file)
        for file in newest.files
    ]
    return StoredCheckpoint(step=newest.step, files=files)


@call(ReportRequest, token="WORKER_TOKEN")
def report(message: ReportRequest, *, job_id: str) -> ReportAnswer:
    """Progress, heartbeat, and the question whether to go on.

    A full disk of Postgres takes none of the curve's points for a while; no run is to end of that.
    """
    try:
        return ReportAnswer(action=report_job(job_id=job_id, token=message.token, report=message))
    except OperationalError as error:
        if not isinstance(error.__cause__, DiskFull):
            raise
        renew_lease(job_id=job_id, token=message.token)
        raise NoRoom from error


@call(UploadsRequest, token="WORKER_TOKEN")
def uploads(message: UploadsRequest, *, job_id: str) -> UploadsAnswer:
    """Where the current attempt may put its files."""
    job = check_token(job_id=job_id, token=message.token)
    step = message.checkpoint
    if step is None:
        check_outputs(job, message.files)
    else:
        check_files(message.files)

    def key(name: str) -> str:
        return staging_key(job, name) if step is None else object_key(job.pk, job.attempt, step, name)

    return UploadsAnswer(
        uploads=[UploadGrant(name=file.name, url=blobs.put_url(key(file.name))) for file in message.files]
    )


@call(CheckpointRequest, token="WORKER_TOKEN")
def checkpoint(message: CheckpointRequest, *, job_id: str) -> None:
    """The files of a checkpoint are uploaded: from now on another worker may go on from it."""
    check_files(message.files)
    job = check_token(job_id=job_id, token=message.token)
    uploaded(job, message.step, message.files)
    record_checkpoint(job_id=job_id, token=message.token, step=message.step, files=message.files)


@call(FinishRequest, token="WORKER_TOKEN")
def finish(message: FinishRequest, *, job_id: str) -> None:
    """End the attempt. The same call again is answered like the first, and changes nothing."""
    if sum((message.result is not None, message.failure is not None, message.cancelled)) != 1:
        raise Refused("bad_request", "Exactly one of result, failure and cancelled ends a job.")
    size = sum(file.size for file in message.files)
    with held(f"finish:{job_id}", at_most=time_to_finish(size)):
        if already_finished(job_id=job_id, token=message.token):
            return
        if message.result is None:
            finish_job(
                job_id=job_id, token=message.token, failure=message.failure, cancelled=message.cancelled
            )
        else:
            _succeed(message, job_id, size)


def _succeed(message: FinishRequest, job_id: str, size: int) -> None:
    """A result that does not hold up fails the attempt, in words, and the job is tried again."""
    job = hold_for_finish(job_id=job_id, token=message.token, uploaded=size)
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


@call(HelloRequest, token="WORKER_TOKEN")
def hello(message: HelloRequest) -> HelloAnswer:
    """A worker lives."""
    worker = hear(message)
    draining = worker.draining_since is not None
    return HelloAnswer(draining=draining, unheard=not draining and rings_unheard(worker))


@csrf_exempt
@require_POST
def enrol_worker(request: HttpRequest) -> HttpResponse:
    """A one-time token becomes a worker's own secret."""
    try:
        message = parse(EnrolRequest, request.body)
        secret = enrol(token=bearer(request), name=message.worker)
    except Refused as error:
        return as_json(error.refusal, error.status)
    return as_json(EnrolAnswer(secret=secret), 200)


@call(PoolReport, token="AGENT_TOKEN")
def sync(message: PoolReport, *, pool: str) -> PoolWanted:
    """What a replica holds, against what it should hold."""
    published = live_version_ids(since=timezone.now() - ROLLBACK_WINDOW)
    return sync_pool(pool_name=pool, report=message, published=published)
