"""What a fault may have left behind: checkpoints that nobody may go on from, results that nobody names."""

from collections.abc import Iterator
from datetime import timedelta

from stillhouse.adapters.models import AdapterVersion
from stillhouse.core import blobs
from stillhouse.datasets.models import DatasetVersion
from stillhouse.erasure.unnamed import remove_unnamed
from stillhouse.evaluations.models import EvaluationResult
from stillhouse.jobs.checkpoints import PREFIX, object_key, remove_dropped_checkpoints, remove_orphans
from stillhouse.jobs.models import Checkpoint

CONTENT = "sha256/"


def content() -> set[str]:
    """The keys of everything kept by its content."""
    return {key for key, _ in blobs.objects(CONTENT)}


def check_objects(before: set[str]) -> None:
    """Every object belongs to something, once the keeper has tidied up. `before`: what other tests left."""
    remove_dropped_checkpoints()
    remove_orphans(older_than_seconds=-60)
    remove_unnamed(older_than=timedelta(seconds=-60))
    known = {
        object_key(row.job_id, row.attempt, row.step, file["name"])
        for row in Checkpoint.objects.all()
        for file in row.files
    }
    assert {key for key, _ in blobs.objects(PREFIX)} == known, "objects without a manifest"
    unnamed = content() - before - {blobs.blob_key(digest) for digest in _named()}
    assert not unnamed, "results that nobody names"


def _named() -> Iterator[str]:
    for version in DatasetVersion.objects.all():
        yield from filter(None, (version.sha256, version.rows_sha256))
    for adapter in AdapterVersion.objects.all():
        yield adapter.digest
        yield from (file["sha256"] for file in adapter.manifest_body["files"])
    yield from EvaluationResult.objects.values_list("rows_sha256", flat=True)
