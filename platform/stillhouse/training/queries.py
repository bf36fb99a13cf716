"""Reads of training runs, within the member's workspace."""

from django.db.models import QuerySet

from stillhouse.accounts.models import Membership
from stillhouse.core.errors import NotFound
from stillhouse.datasets.actions import MOST_HELD_OUT
from stillhouse.datasets.models import DatasetVersion
from stillhouse.datasets.queries import versions
from stillhouse.training.models import TrainingRun


def runs(by: Membership) -> QuerySet[TrainingRun]:
    """The workspace's runs, the newest first."""
    return TrainingRun.objects.filter(workspace=by.workspace).select_related(
        "job", "base", "data__dataset", "eval_data__dataset", "started_by"
    )


def newest_held_out(by: Membership) -> list[DatasetVersion]:
    """Versions that runs of the workspace were evaluated on, the newest first, as many as a report takes."""
    evaluated = TrainingRun.objects.filter(workspace=by.workspace).exclude(eval_data=None)
    return list(versions(by).filter(pk__in=evaluated.values("eval_data"))[:MOST_HELD_OUT])


def get_run(by: Membership, run_id: str) -> TrainingRun:
    """One run of the workspace; raises NotFound."""
    run = runs(by).filter(pk=run_id).first()
    if run is None:
        raise NotFound("training run")
    return run
