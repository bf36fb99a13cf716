"""Writes of datasets: names, versions and what their checks found. How a file arrives is in `uploading`."""

from collections.abc import Sequence

from django.db import IntegrityError, transaction
from django.db.models import Max

from stillhouse.accounts.access import require
from stillhouse.accounts.models import Membership
from stillhouse.audit.actions import record
from stillhouse.core.blobs import Blob
from stillhouse.core.errors import NotFound, UserError
from stillhouse.core.text import clean_name, storable_json
from stillhouse.datasets.models import Dataset, DatasetReport, DatasetVersion, Upload
from stillhouse.datasets.queries import check_not_erased
from stillhouse.jobs.actions import queue_job
from stillhouse.jobs.models import Kind
from workers.contract import Mapping, OtherRows, OutputFile, ValidateSpec, ValidationReport

QUEUE = "cpu"
MOST_HELD_OUT = 20
"""Versions that a check compares with."""


@transaction.atomic
def create_dataset(*, by: Membership, name: str) -> Dataset:
    """Make an empty dataset; its name is unique within the workspace."""
    require(by, "dataset.upload")
    name = clean_name(name, what="dataset's name")
    try:
        with transaction.atomic():
            dataset = Dataset.objects.create(workspace=by.workspace, name=name, created_by=by.user)
    except IntegrityError as error:
        raise UserError(
            "name_taken",
            f"There is a dataset called {name!r} already.",
            place="name",
            next_step="Choose another name, or upload a new version of that dataset.",
        ) from error
    record(
        workspace=by.workspace, by=by.user, action="dataset.created", object_id=dataset.pk, object_name=name
    )
    return dataset


def read_differently(
    *,
    by: Membership,
    version: DatasetVersion,
    mapping: Mapping,
    held_out: Sequence[DatasetVersion] = (),
) -> DatasetVersion:
    """The same bytes read in another way: the dataset's next version, with its check queued.

    A version never changes, for runs may have been started on it. Raises UserError `not_hashed_yet`.
    """
    check_workspace(by, version.dataset)
    require(by, "dataset.upload")
    check_not_erased(version)
    if not version.sha256:
        raise UserError(
            "not_hashed_yet", f"{version} is still being checked.", next_step="Try again when it is done."
        )
    with transaction.atomic():
        dataset = Dataset.objects.select_for_update().get(pk=version.dataset_id)
        same = dataset.versions.filter(sha256=version.sha256, mapping=mapping.model_dump(mode="json")).first()
        if same is not None:
            return same
        return write_version(
            by,
            dataset,
            upload=None,
            filename=version.filename,
            blob=Blob(version.sha256, version.size),
            mapping=mapping,
            held_out=held_out,
        )


def write_version(
    by: Membership,
    dataset: Dataset,
    *,
    upload: Upload | None,
    filename: str,
    blob: Blob,
    mapping: Mapping | None = None,
    held_out: Sequence[DatasetVersion] = (),
) -> DatasetVersion:
    """The dataset's next version, with its check queued, in a transaction of the caller's that has locked the
    dataset's row."""
    version = DatasetVersion(
        dataset=dataset,
        number=(dataset.versions.aggregate(last=Max("number"))["last"] or 0) + 1,
        filename=filename,
        sha256=blob.sha256,
        size=blob.size,
        mapping=mapping.model_dump(mode="json") if mapping else None,
        upload=upload,
        created_by=by.user,
    )
    version.job = queue_job(
        workspace=by.workspace,
        kind=Kind.VALIDATE,
        queue=QUEUE,
        subject=version.pk,
        spec=ValidateSpec(mapping=mapping, others=compared_with(by, held_out)).model_dump(mode="json"),
        by=by.user,
    )
    version.save(force_insert=True)
    record(
        workspace=by.workspace,
        by=by.user,
        action="dataset.version_created",
        object_id=version.pk,
        object_name=str(version),
        details={"sha256": blob.sha256, "size": blob.size, "filename": filename},
    )
    return version


def compared_with(by: Membership, held_out: Sequence[DatasetVersion]) -> list[OtherRows]:
    """The held-out versions that a report names rows of: at most MOST_HELD_OUT that still have their rows."""
    return [
        OtherRows(name=str(other)[:200], sha256=other.trained_sha256)
        for other in held_out
        if other.dataset.workspace_id == by.workspace_id and other.trained_sha256 and not other.erased_at
    ][:MOST_HELD_OUT]


def record_report(
    *,
    version: DatasetVersion,
    report: ValidationReport,
    rows: OutputFile | None = None,
    beside: dict[str, object] | None = None,
) -> DatasetReport:
    """Keep what the check of a version found and the good rows it wrote; the same check again replaces it.

    `beside` is kept with the report.
    """
    updates = {"rows_sha256": rows.sha256, "rows_size": rows.size} if rows else {}
    if not version.sha256 and report.sha256:
        updates["sha256"] = report.sha256
    if updates:
        DatasetVersion.objects.filter(pk=version.pk).update(**updates)
    body = storable_json({**report.model_dump(mode="json"), **(beside or {})})
    return DatasetReport.objects.update_or_create(
        version=version,
        defaults={
            "rows": report.rows,
            "valid": report.valid,
            "error_count": report.error_count,
            "warning_count": report.warning_count,
            "body": body,
        },
    )[0]


def check_workspace(by: Membership, dataset: Dataset) -> None:
    """Raises NotFound for a dataset of another workspace."""
    if dataset.workspace_id != by.workspace_id:
        raise NotFound("dataset")
