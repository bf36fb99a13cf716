"""Reads of evaluations: the latest of a version, and its rows page by page."""

from collections.abc import Collection, Mapping

from django.core.paginator import Page, Paginator
from django.db.models import F, Q

from stillhouse.accounts.models import Membership
from stillhouse.adapters.models import AdapterVersion
from stillhouse.core.errors import NotFound, UserError
from stillhouse.evaluations.models import EvaluatedRow, Evaluation, EvaluationResult

FILTERS: Mapping[str, Q] = {
    "all": Q(),
    "changed": ~Q(base_exact=F("adapter_exact")),
    "improved": Q(base_exact=False, adapter_exact=True),
    "regressed": Q(base_exact=True, adapter_exact=False),
    "wrong": Q(adapter_exact=False),
    "both_wrong": Q(base_exact=False, adapter_exact=False),
}
"""Which rows: those where exactness changed between base and adapter, got better, got worse, where the
adapter is not exact, or where neither is."""


def latest_evaluation(version: AdapterVersion) -> Evaluation | None:
    """The version's newest evaluation, whatever became of it."""
    return (
        Evaluation.objects.filter(version=version)
        .select_related("job", "data__dataset", "result")
        .order_by("-created_at", "-id")
        .first()
    )


def instructions_of(versions: Collection[AdapterVersion]) -> dict[str, str]:
    """By the version's id, the system message that its evaluated rows begin with; "" for none."""
    rows = EvaluatedRow.objects.filter(evaluation__version__in=versions, index=0)
    found = {version.pk: "" for version in versions}
    for row in rows.select_related("evaluation").order_by("evaluation__created_at"):
        first = row.body["messages"][0]
        found[row.evaluation.version_id] = first["content"] if first["role"] == "system" else ""
    return found


def latest_result(version: AdapterVersion) -> EvaluationResult | None:
    """The version's newest result; None while there is none."""
    return (
        EvaluationResult.objects.filter(evaluation__version=version)
        .select_related("evaluation__data__dataset")
        .order_by("-created_at")
        .first()
    )


def row_counts(evaluation: Evaluation) -> dict[str, int]:
    """How many rows each filter shows."""
    rows = EvaluatedRow.objects.filter(evaluation=evaluation)
    return {show: rows.filter(condition).count() for show, condition in FILTERS.items()}


def rows_page(
    by: Membership, evaluation: Evaluation, *, show: str = "all", page: int = 1, size: int = 20
) -> Page[EvaluatedRow]:
    """One page of an evaluation's rows in their order; a page beyond the last gives the last.

    Raises NotFound for another workspace's evaluation and UserError `unknown_filter`.
    """
    if evaluation.version.adapter.workspace_id != by.workspace_id:
        raise NotFound("evaluation")
    if show not in FILTERS:
        raise UserError(
            "unknown_filter",
            f"There is no filter {show[:40]!r}.",
            "show",
            f"Use one of: {', '.join(FILTERS)}.",
        )
    rows = EvaluatedRow.objects.filter(FILTERS[show], evaluation=evaluation).order_by("index")
    return Paginator(rows, size).get_page(page)
