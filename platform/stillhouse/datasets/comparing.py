"""What differs between two versions: asked of a worker once, and kept."""

from django.db import IntegrityError, transaction

from stillhouse.accounts.models import Membership
from stillhouse.core.errors import NotFound
from stillhouse.core.text import storable_json
from stillhouse.datasets.actions import QUEUE
from stillhouse.datasets.deriving import check_usable
from stillhouse.datasets.models import Comparison, DatasetVersion
from stillhouse.jobs.actions import queue_job
from stillhouse.jobs.models import Kind
from workers.contract import CompareResult, CompareSpec


def request_comparison(*, by: Membership, before: DatasetVersion, after: DatasetVersion) -> Comparison:
    """Have two versions compared, once; again, it returns the comparison there is. Raises Conflict
    `not_checked` for one without usable rows."""
    for version in (before, after):
        if version.dataset.workspace_id != by.workspace_id:
            raise NotFound("dataset version")
    check_usable([before, after])
    found = Comparison.objects.filter(before=before, after=after).select_related("job").first()
    if found is not None:
        return found
    comparison = Comparison(before=before, after=after)
    try:
        with transaction.atomic():
            comparison.job = queue_job(
                workspace=by.workspace,
                kind=Kind.COMPARE,
                queue=QUEUE,
                subject=comparison.pk,
                spec=CompareSpec(origin=_origin(before, after)).model_dump(mode="json"),
                by=by.user,
            )
            comparison.save(force_insert=True)
    except IntegrityError:  # somebody else asked at the same moment
        return Comparison.objects.select_related("job").get(before=before, after=after)
    return comparison


def record_comparison(*, comparison_id: str, result: CompareResult) -> None:
    """Keep what a `compare` job found."""
    body = storable_json(result.model_dump(mode="json"))
    Comparison.objects.filter(pk=comparison_id).update(body=body)


def _origin(before: DatasetVersion, after: DatasetVersion) -> int | None:
    """The place of `before` among the sources that `after` was made from."""
    source = after.sources.filter(parent=before).first()
    return source.position if source else None
