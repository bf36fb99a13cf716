"""The ways an attempt ends other than with a result."""

import errno
import os
from typing import Literal

from workers.contract import JobFailure
from workers.wire.transfer import TransferError

FULL = (errno.ENOSPC, errno.EDQUOT)
DISK_FULL = JobFailure(
    fault="platform",
    code="disk_full",
    message="The worker's disk is full; free space under its WORK_DIR.",
)
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class JobFailed(Exception):
    """The attempt failed, and why, for a person. `user`: data or settings. `platform`: ours, retried."""

    def __init__(self, code: str, message: str, fault: Literal["user", "platform"] = "platform") -> None:
        super().__init__(message)
        self.failure = JobFailure(fault=fault, code=code[:60], message=message[:2000])


class JobCancelled(Exception):
    """Somebody cancelled the job; the platform is told so."""


class JobLost(Exception):
    """The job is no longer this worker's: refused, or silent for too long. The platform knows already."""


def failure_of(error: Exception) -> JobFailure:
    """What to tell about an error.

    One nobody foresaw gets a stable code and a sentence, never its own text, which may quote data.
    """
    if isinstance(error, JobFailed):
        return error.failure
    if isinstance(error, TransferError):
        return JobFailure(fault="platform", code=error.code, message=str(error))
    if isinstance(error, OSError) and error.errno in FULL:
        return DISK_FULL
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return JobFailure(
            fault="platform",
            code="disk_unusable",
            message=f"The worker cannot use its disk ({os.strerror(error.errno or 0)}); look there.",
        )
    if isinstance(error, MemoryError):
        return JobFailure(fault="platform", code="out_of_memory", message="The worker ran out of memory.")
    return JobFailure(
        fault="platform",
        code="internal_error",
        message=f"Something in the worker failed unexpectedly ({type(error).__name__}); see its log.",
    )
