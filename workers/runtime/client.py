"""The worker API by name: claim, report, uploads, checkpoints, finish, hello, enrol."""

import secrets

from workers.contract import (
    CheckpointRequest,
    ClaimAnswer,
    ClaimRequest,
    EnrolAnswer,
    EnrolRequest,
    FinishRequest,
    HelloAnswer,
    HelloRequest,
    OutputFile,
    ReportAnswer,
    ReportRequest,
    UploadGrant,
    UploadsAnswer,
    UploadsRequest,
)
from workers.wire.api import PlatformAPI

CLAIM_PATIENCE = 30.0
UPLOADS_PATIENCE = 120.0
FINISH_TIMEOUT = 300.0
"""Seconds one finish may take: the platform reads every uploaded byte before it answers."""


class WorkerClient:
    """Calls of one worker. Raises `Refused` (stop this job) or `Unreachable` (the platform is away)."""

    def __init__(self, url: str, token: str) -> None:
        self._api = PlatformAPI(url, token)

    def close(self) -> None:
        self._api.close()

    def claim(self, job: str, worker: str) -> ClaimAnswer:
        """Idempotent by its key, so it is repeated when the answer is lost on the way."""
        request = ClaimRequest(worker=worker, key=secrets.token_urlsafe(24))
        return self._api.post(f"/worker/v1/jobs/{job}/claim", request, ClaimAnswer, patience=CLAIM_PATIENCE)

    def report(self, job: str, report: ReportRequest) -> ReportAnswer:
        """Tried once: the next report is a few seconds away, and says more."""
        return self._api.post(f"/worker/v1/jobs/{job}/report", report, ReportAnswer)

    def grant(self, job: str, token: str, file: OutputFile, *, checkpoint: int | None = None) -> UploadGrant:
        """A fresh presigned PUT for one file of the result, or of the `checkpoint` at a step."""
        request = UploadsRequest(token=token, files=[file], checkpoint=checkpoint)
        answer = self._api.post(
            f"/worker/v1/jobs/{job}/uploads", request, UploadsAnswer, patience=UPLOADS_PATIENCE
        )
        return next(grant for grant in answer.uploads if grant.name == file.name)

    def checkpoint(self, job: str, request: CheckpointRequest) -> None:
        """Say that a checkpoint is uploaded. Again is the same as once."""
        self._api.post_for_nothing(f"/worker/v1/jobs/{job}/checkpoints", request, patience=UPLOADS_PATIENCE)

    def hello(self, request: HelloRequest) -> HelloAnswer:
        """Tried once: the next hello is half a minute away."""
        return self._api.post("/worker/v1/hello", request, HelloAnswer)

    def enrol(self, request: EnrolRequest) -> EnrolAnswer:
        return self._api.post("/worker/v1/enrol", request, EnrolAnswer)

    def finish(self, job: str, request: FinishRequest, patience: float) -> None:
        """Idempotent per token, so it is repeated for `patience` seconds until the platform took it."""
        self._api.post_for_nothing(
            f"/worker/v1/jobs/{job}/finish", request, patience=patience, timeout=FINISH_TIMEOUT
        )
