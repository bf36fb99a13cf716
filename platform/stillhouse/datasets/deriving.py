"""New versions made from old ones: operations over rows, done by a worker, shown with what they did."""

from collections.abc import Sequence

from django.db import transaction
from django.db.models import Max
from pydantic import ValidationError

from stillhouse.accounts.access import require
from stillhouse.accounts.models import Membership
from stillhouse.audit.actions import record
from stillhouse.core.errors import Conflict, NotFound, UserError
from stillhouse.core.text import storable
from stillhouse.datasets.actions import QUEUE, compared_with, record_report
from stillhouse.datasets.models import Dataset, DatasetReport, DatasetVersion, VersionSource
from stillhouse.datasets.queries import check_not_erased
from stillhouse.datasets.quota import check_room
from stillhouse.jobs.actions import queue_job
from stillhouse.jobs.models import Kind
from workers.contract import DeriveResult, DeriveSource, DeriveSpec, Operation, OutputFile

WHY_CHARACTERS = 300


def derive_version(
    *,
    by: Membership,
    version: DatasetVersion,
    operations: Sequence[Operation],
    others: Sequence[DatasetVersion] = (),
    why: str = "",
    held_out: Sequence[DatasetVersion] = (),
) -> DatasetVersion:
    """The dataset's next version: the rows of `version`, changed by one operation after the other.

    `others` are the sources 1, 2, … that operations name; rows that are in `held_out` as well are reported.
    The old version stays. Raises Conflict `not_checked` for a source without usable rows, UserError
    `bad_change` for operations that cannot be, and `quota_reached` where another file of its size would not
    fit.
    """
    sources = [version, *others]
    for source in sources:
        if source.dataset.workspace_id != by.workspace_id:
            raise NotFound("dataset version")
    require(by, "dataset.upload")
    check_usable(sources)
    check_room(by.workspace, version.trained_size)
    spec = _spec(sources, operations).model_copy(update={"others": compared_with(by, held_out)})
    with transaction.atomic():
        dataset = Dataset.objects.select_for_update().get(pk=version.dataset_id)
        made = DatasetVersion(
            dataset=dataset,
            number=(dataset.versions.aggregate(last=Max("number"))["last"] or 0) + 1,
            filename=version.filename,
            size=0,
            operations=[operation.model_dump(mode="json") for operation in spec.operations],
            why=storable(why.strip())[:WHY_CHARACTERS],
            created_by=by.user,
        )
        made.job = queue_job(
            workspace=by.workspace,
            kind=Kind.DERIVE,
            queue=QUEUE,
            subject=made.pk,
            spec=spec.model_dump(mode="json"),
            by=by.user,
        )
        made.save(force_insert=True)
        VersionSource.objects.bulk_create(
            VersionSource(version=made, parent=source, position=position)
            for position, source in enumerate(sources)
        )
        record(
            workspace=by.workspace,
            by=by.user,
            action="dataset.version_derived",
            object_id=made.pk,
            object_name=str(made),
            details={
                "from": [source.pk for source in sources],
                "operations": [operation.op for operation in spec.operations],
            },
        )
    return made


def record_derived(*, version: DatasetVersion, result: DeriveResult, rows: OutputFile) -> DatasetReport:
    """Keep what a `derive` job made and what each operation did."""
    if result.report is None:
        raise UserError("report_missing", "The job wrote rows and no report on them.", place="report")
    DatasetVersion.objects.filter(pk=version.pk).update(sha256=rows.sha256, size=rows.size)
    derivation = result.model_dump(mode="json", include={"operations", "rows", "refused"})
    return record_report(version=version, report=result.report, rows=rows, beside={"derivation": derivation})


def check_usable(sources: Sequence[DatasetVersion]) -> None:
    """Raises Conflict `not_checked` for a version without a row that can be used, and `erased`."""
    for source in sources:
        check_not_erased(source)
    usable = set(
        DatasetReport.objects.filter(version__in=sources, valid__gt=0).values_list("version_id", flat=True)
    )
    for source in sources:
        if source.pk not in usable:
            raise Conflict("not_checked", f"{source} has no usable rows, or its check has not ended yet.")


def _spec(sources: Sequence[DatasetVersion], operations: Sequence[Operation]) -> DeriveSpec:
    try:
        return DeriveSpec(
            sources=[
                DeriveSource(name=str(source)[:200], sha256=source.trained_sha256) for source in sources
            ],
            operations=list(operations),
        )
    except ValidationError as error:
        raise UserError(
            "bad_change",
            f"That change cannot be made: {error.errors()[0]['msg']}.",
            next_step="Check what you filled in and try again.",
        ) from error
