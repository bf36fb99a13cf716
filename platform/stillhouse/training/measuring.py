"""Writes of what estimates are made from: token counts, and what finished runs took."""

from django.db import IntegrityError, transaction

from stillhouse.accounts.access import require
from stillhouse.accounts.models import Membership
from stillhouse.catalog.models import BaseModel
from stillhouse.core.errors import NotFound
from stillhouse.datasets.models import DatasetVersion
from stillhouse.jobs.actions import queue_job
from stillhouse.jobs.models import Kind
from stillhouse.training.models import RunMeasure, TokenCount, TrainingRun
from workers.contract import CountSpec, ThinkPolicy, TokenCounts, TrainResult
from workers.contract.machines import class_name

QUEUE = "cpu"


def request_count(
    *, by: Membership, version: DatasetVersion, base: BaseModel, policy: ThinkPolicy
) -> TokenCount:
    """Have the tokens of a version counted with a base, once; again, it returns the count there is."""
    if version.dataset.workspace_id != by.workspace_id:
        raise NotFound("dataset version")
    require(by, "run.start")
    key = count_key(version, base, policy)
    found = TokenCount.objects.filter(**key).first()
    if found is not None:
        return found
    count = TokenCount(**key)
    spec = CountSpec(
        base=base.pk,
        base_digest=base.digest,
        template_sha256=base.template_sha256,
        think=base.think_contract,
        think_policy=policy,
    )
    try:
        with transaction.atomic():
            count.job = queue_job(
                workspace=by.workspace,
                kind=Kind.COUNT,
                queue=QUEUE,
                subject=count.pk,
                spec=spec.model_dump(mode="json"),
                by=by.user,
            )
            count.save(force_insert=True)
    except IntegrityError:  # somebody else opened the same form at the same moment
        return TokenCount.objects.get(**key)
    return count


def count_key(version: DatasetVersion, base: BaseModel, policy: ThinkPolicy) -> dict[str, object]:
    """What a count holds for: other weights or another template may count otherwise."""
    return {
        "version": version,
        "base": base,
        "base_digest": base.digest,
        "template_sha256": base.template_sha256,
        "think_policy": policy,
    }


def record_counts(*, count_id: str, counts: TokenCounts) -> None:
    """Keep what a `count` job found."""
    TokenCount.objects.filter(pk=count_id).update(body=counts.model_dump(mode="json"))


def record_measure(*, run: TrainingRun, result: TrainResult) -> None:
    """Keep what a run took beside what was predicted; nothing when nothing was, as after a resume."""
    if not (result.device and result.predicted_seconds and result.predicted_memory_bytes and result.seconds):
        return
    RunMeasure.objects.update_or_create(
        run=run,
        defaults={
            "base_digest": run.spec.base_digest or "",
            "device_class": class_name(result.device)[:120],
            "predicted_seconds": result.predicted_seconds,
            "seconds": result.seconds,
            "predicted_memory_bytes": result.predicted_memory_bytes,
            "memory_bytes": result.peak_memory_bytes,
        },
    )
