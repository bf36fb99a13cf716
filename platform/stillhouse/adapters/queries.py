"""Reads of the registry, within the member's workspace."""

from dataclasses import dataclass

from django.db.models import Q, QuerySet

from stillhouse.accounts.models import Membership
from stillhouse.adapters.models import Adapter, AdapterVersion
from stillhouse.catalog.models import BaseModel
from stillhouse.core.errors import NotFound
from stillhouse.datasets.models import DatasetVersion
from stillhouse.training.models import TrainingRun


@dataclass(frozen=True)
class Lineage:
    """Where a version comes from."""

    version: AdapterVersion
    run: TrainingRun
    data: DatasetVersion
    eval_data: DatasetVersion | None
    base: BaseModel


def adapters(by: Membership) -> QuerySet[Adapter]:
    """The workspace's adapters by name."""
    return Adapter.objects.filter(workspace=by.workspace).order_by("name").prefetch_related("versions")


def versions(by: Membership) -> QuerySet[AdapterVersion]:
    """The workspace's versions, the newest first."""
    return (
        AdapterVersion.objects.filter(adapter__workspace=by.workspace)
        .select_related(
            "adapter",
            "run__base",
            "run__data__dataset",
            "run__eval_data__dataset",
            "run__started_by",
            "run__job",
        )
        .order_by("-created_at")
    )


def get_version(by: Membership, name: str) -> AdapterVersion:
    """One version of the workspace, by id or by serving name; raises NotFound."""
    version = versions(by).filter(Q(pk=name) | Q(serving_name=name)).first()
    if version is None:
        raise NotFound("adapter version")
    return version


def lineage(version: AdapterVersion) -> Lineage:
    """From the version back to its run, its data and its base."""
    run = version.run
    return Lineage(version=version, run=run, data=run.data, eval_data=run.eval_data, base=run.base)
