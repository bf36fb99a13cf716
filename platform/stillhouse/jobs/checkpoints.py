"""Checkpoints in the object store: what a worker uploaded, what another goes on from, what is dropped.

A row is written when every file is there (the checkpoint's own manifest last), so that a half upload is no
checkpoint. Digests stay in Postgres: whoever downloads a file compares.
"""

import logging
from collections.abc import Sequence
from datetime import timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import F, QuerySet, Value
from django.db.models.functions import Greatest, Now
from django.utils import timezone

from stillhouse.core import blobs
from stillhouse.core.errors import UserError
from stillhouse.jobs.errors import Refused
from stillhouse.jobs.models import ENDED, RUNNING, Checkpoint, Job, Metric
from stillhouse.jobs.tokens import digest_of
from workers.contract import OutputFile

log = logging.getLogger(__name__)

FILES = 16
"""The most files of one checkpoint."""
FILE_BYTES = 64 * 1024**3
ENDED_KEPT_FOR = timedelta(days=14)
"""How long a failed or cancelled job may still be tried again from its checkpoint."""
PREFIX = "checkpoints/"
ORPHANS_KEPT_SECONDS = 24 * 3600.0
"""An upload that takes longer than this is none any more."""


def object_key(job_id: str, attempt: int, step: int, name: str) -> str:
    """Where an attempt keeps a file of a checkpoint: attempts never write over each other's."""
    return f"{PREFIX}{job_id}/{attempt}/{step}/{name}"


def check_files(files: Sequence[OutputFile]) -> None:
    """Raises UserError for a checkpoint of too many or too large files."""
    if len(files) > FILES or any(file.size > FILE_BYTES for file in files):
        raise UserError("checkpoint_too_large", f"A checkpoint has at most {FILES} files of 64 GiB.")


def usable(job: Job) -> QuerySet[Checkpoint]:
    """The checkpoints that an attempt may go on from, the newest last."""
    return Checkpoint.objects.filter(job=job, dropped_at=None, attempt__gte=job.beginning)


def newest_checkpoint(job: Job) -> Checkpoint | None:
    return usable(job).order_by("step", "attempt").last()


def uploaded(job: Job, step: int, files: Sequence[OutputFile]) -> None:
    """Raises UserError unless the store holds every file with its announced size. Talks to the store."""
    for file in files:
        size = blobs.staged_size(object_key(job.pk, job.attempt, step, file.name))
        if size != file.size:
            raise UserError(
                "upload_missing",
                f"{file.name} of the checkpoint at step {step} is not in the store, or not whole.",
                place=file.name,
            )


@transaction.atomic
def record_checkpoint(*, job_id: str, token: str, step: int, files: Sequence[OutputFile]) -> None:
    """Make an uploaded checkpoint count, and drop the ones it replaces. Again is the same as once."""
    job = (
        Job.objects.select_for_update()
        .filter(pk=job_id, state=RUNNING, token_digest=digest_of(token))
        .first()
    )
    if job is None:
        raise Refused("stale_token", f"Job {job_id} no longer belongs to this attempt.")
    Checkpoint.objects.get_or_create(
        job=job, attempt=job.attempt, step=step, defaults={"files": [file.model_dump() for file in files]}
    )
    # The reports may have been lost on the way: what is kept here was done.
    Job.objects.filter(pk=job.pk).update(step=Greatest(F("step"), Value(step)))
    _prune(job)


def _prune(job: Job) -> None:
    """Keep the newest `CHECKPOINTS_KEPT` and the best: the one at whose step the loss was lowest."""
    rows = list(usable(job).order_by("-step", "-attempt"))
    losses = _losses(job, [row.step for row in rows])
    best = min(rows, key=lambda row: losses.get(row.step, float("inf")))
    old = [row.pk for row in rows[settings.CHECKPOINTS_KEPT :] if row.pk != best.pk]
    Checkpoint.objects.filter(pk__in=old).update(dropped_at=Now())


def _losses(job: Job, steps: Sequence[int]) -> dict[int, float]:
    """Loss by step: on held-out rows where the worker reports it, else on the rows it trained on."""
    points = metrics_at(job, steps).items()
    found = {step: values.get("heldout_loss", values.get("loss")) for step, values in points}
    return {step: loss for step, loss in found.items() if loss is not None}


def metrics_at(job: Job, steps: Sequence[int]) -> dict[int, dict[str, float]]:
    """The job's figures by name, by step; a step without any is left out."""
    return dict(Metric.objects.filter(job=job, step__in=steps).values_list("step", "values"))


def drop_checkpoints(job: Job) -> None:
    """Nobody goes on from this job's checkpoints any more; the keeper removes the objects."""
    Checkpoint.objects.filter(job=job, dropped_at=None).update(dropped_at=Now())


def drop_resumed(job: Job) -> bool:
    """The checkpoint that this attempt was to go on from is damaged: the next one takes the one before it.
    Whether there was one."""
    return usable(job).filter(step=job.resumed_step).update(dropped_at=Now()) > 0


def remove_orphans(*, older_than_seconds: float = ORPHANS_KEPT_SECONDS) -> int:
    """Remove what attempts uploaded of checkpoints that never became whole; returns how many objects."""
    limit = timezone.now() - timedelta(seconds=older_than_seconds)
    removed = 0
    for key, changed in blobs.objects(PREFIX):
        job, attempt, step = key.removeprefix(PREFIX).split("/")[:3]
        known = Checkpoint.objects.filter(job_id=job, attempt=int(attempt), step=int(step))
        if changed < limit and not known.exists():
            blobs.discard(key)
            removed += 1
    return removed


def remove_dropped_checkpoints() -> int:
    """Remove the objects of dropped checkpoints, and the rows after them; returns how many.

    First drops those of jobs that ended without success long ago.
    """
    Checkpoint.objects.filter(
        dropped_at=None, job__state__in=ENDED, job__finished_at__lt=Now() - ENDED_KEPT_FOR
    ).update(dropped_at=Now())
    dropped = list(Checkpoint.objects.exclude(dropped_at=None)[:100])
    for row in dropped:
        # The manifest first: what is left of an interrupted removal is no checkpoint to anybody.
        for file in reversed(row.files):
            blobs.discard(object_key(row.job_id, row.attempt, row.step, file["name"]))
        row.delete()
    return len(dropped)
