"""Reads of datasets, always within one workspace."""

from django.db.models import QuerySet

from stillhouse.accounts.models import Membership
from stillhouse.core.errors import Conflict, NotFound
from stillhouse.datasets.models import Dataset, DatasetVersion, Upload


def datasets(by: Membership) -> QuerySet[Dataset]:
    """The workspace's datasets by name."""
    return Dataset.objects.filter(workspace=by.workspace).order_by("name")


def get_dataset(by: Membership, dataset_id: str) -> Dataset:
    """One dataset of the workspace; raises NotFound."""
    dataset = datasets(by).filter(pk=dataset_id).first()
    if dataset is None:
        raise NotFound("dataset")
    return dataset


def versions(by: Membership) -> QuerySet[DatasetVersion]:
    """Every version of the workspace, newest first; `report` exists once its check has ended well.

    The body of a report, megabytes of problems, is read where somebody asks for it.
    """
    return (
        DatasetVersion.objects.filter(dataset__workspace=by.workspace)
        .select_related("dataset__workspace", "job", "report", "created_by")
        .defer("report__body")
        .order_by("-created_at")
    )


def get_version(by: Membership, dataset_id: str, number: int) -> DatasetVersion:
    """One version by its dataset and number; raises NotFound."""
    version = versions(by).filter(dataset_id=dataset_id, number=number).first()
    if version is None:
        raise NotFound("dataset version")
    return version


def version_by_id(by: Membership, version_id: str) -> DatasetVersion:
    """One version of the workspace by its id; raises NotFound."""
    version = versions(by).filter(pk=version_id).first()
    if version is None:
        raise NotFound("dataset version")
    return version


def trainable(by: Membership) -> QuerySet[DatasetVersion]:
    """The versions that a run may be started on: checked, with at least one row that can be used, none
    of them erased."""
    return versions(by).filter(report__valid__gt=0, erased_at=None)


def check_not_erased(version: DatasetVersion) -> None:
    """Raises Conflict `erased` for a version with rows that somebody had erased."""
    if version.erased_at is not None:
        raise Conflict(
            "erased",
            f"Rows of {version} were erased: nothing is made from it any more.",
            "Use a version that was made without those rows.",
        )


def get_upload(by: Membership, upload_id: str) -> Upload:
    """One upload into a dataset of the workspace; raises NotFound."""
    upload = (
        Upload.objects.filter(pk=upload_id, dataset__workspace=by.workspace).select_related("dataset").first()
    )
    if upload is None:
        raise NotFound("upload")
    return upload
