"""What operations would do to a version, before anybody agrees: dry runs, done by a worker."""

from collections.abc import Sequence

from django.db import transaction

from stillhouse.accounts.models import Membership
from stillhouse.core.errors import NotFound
from stillhouse.core.text import storable_json
from stillhouse.datasets.actions import QUEUE
from stillhouse.datasets.models import DatasetVersion, Trial
from stillhouse.jobs.actions import queue_job
from stillhouse.jobs.models import Kind
from workers.contract import DeriveResult, DeriveSource, DeriveSpec, Mapping, Operation


@transaction.atomic
def start_trial(
    *, by: Membership, version: DatasetVersion, operations: Sequence[Operation], original: bool = False
) -> Trial:
    """Have a worker count what the operations would do, and show examples. Nothing is written.

    `original`: in the file as it was uploaded, rows in error included, instead of the version's rows.
    """
    if version.dataset.workspace_id != by.workspace_id:
        raise NotFound("dataset version")
    trial = Trial(version=version, original=original)
    mapping = Mapping.model_validate(version.mapping) if original and version.mapping else None
    source = DeriveSource(
        name=str(version)[:200],
        sha256=version.sha256 if original else version.trained_sha256,
        mapping=mapping,
    )
    spec = DeriveSpec(sources=[source], operations=list(operations), dry_run=True)
    trial.job = queue_job(
        workspace=by.workspace,
        kind=Kind.DERIVE,
        queue=QUEUE,
        subject=trial.pk,
        spec=spec.model_dump(mode="json"),
        by=by.user,
    )
    trial.save(force_insert=True)
    return trial


def record_trial(*, trial_id: str, result: DeriveResult) -> None:
    """Keep what a dry run counted."""
    body = storable_json(result.model_dump(mode="json"))
    Trial.objects.filter(pk=trial_id).update(body=body)
