"""Rows as a base sees them: rendered by a worker with the trainer's own code, once, and kept."""

from django.db import IntegrityError, transaction

from stillhouse.accounts.models import Membership
from stillhouse.catalog.models import BaseModel
from stillhouse.core.errors import NotFound
from stillhouse.core.text import storable_json
from stillhouse.datasets.deriving import check_usable
from stillhouse.datasets.models import DatasetVersion
from stillhouse.jobs.actions import queue_job
from stillhouse.jobs.models import Kind
from stillhouse.training.measuring import QUEUE
from stillhouse.training.models import RowPreview
from workers.contract import PreviewResult, PreviewSpec, ThinkPolicy

SHOWN = 20
"""Rows of a preview."""


def request_preview(
    *,
    by: Membership,
    version: DatasetVersion,
    base: BaseModel,
    policy: ThinkPolicy,
    max_length: int,
    first_row: int = 0,
) -> RowPreview:
    """Have rows rendered with a base, once; again, it returns the preview there is.

    From `first_row` on, `SHOWN` of them; with 0 the first ones, and figures over all rows. Raises Conflict
    `not_checked` for a version without usable rows.
    """
    if version.dataset.workspace_id != by.workspace_id:
        raise NotFound("dataset version")
    check_usable([version])
    key = {
        "version": version,
        "base": base,
        "template_sha256": base.template_sha256,
        "think_policy": policy,
        "max_length": max_length,
        "first_row": first_row,
    }
    found = RowPreview.objects.filter(**key).select_related("job").first()
    if found is not None:
        return found
    preview = RowPreview(**key)
    spec = PreviewSpec(
        base=base.pk,
        template_sha256=base.template_sha256,
        think=base.think_contract,
        think_policy=policy,
        max_length=max_length,
        rows=list(range(first_row, first_row + SHOWN)) if first_row else [],
        shown=SHOWN,
        **({"counted_rows": 0} if first_row else {}),
    )
    try:
        with transaction.atomic():
            preview.job = queue_job(
                workspace=by.workspace,
                kind=Kind.PREVIEW,
                queue=QUEUE,
                subject=preview.pk,
                spec=spec.model_dump(mode="json"),
                by=by.user,
            )
            preview.save(force_insert=True)
    except IntegrityError:  # somebody else asked at the same moment
        return RowPreview.objects.select_related("job").get(**key)
    return preview


def record_preview(*, preview_id: str, result: PreviewResult) -> None:
    """Keep what a `preview` job rendered."""
    body = storable_json(result.model_dump(mode="json"))
    RowPreview.objects.filter(pk=preview_id).update(body=body)
