"""How likely an answer of an adapter version is right, from what its evaluation kept."""

from collections.abc import Iterable

from stillhouse.evaluations.isotonic import AtThreshold, Judged, at_thresholds
from stillhouse.evaluations.models import EvaluatedRow, EvaluationResult
from workers.contract import Calibration, EvaluationRow, Sureness


def judged_rows(rows: Iterable[EvaluationRow]) -> list[Judged]:
    """The adapter's answers; none of an evaluation that kept no margins."""
    found = [
        (
            Sureness(row.adapter.least_sure, row.adapter.reasoning_tokens),
            row.adapter.scores.get("exact_match", 0) >= 1,
        )
        for row in rows
    ]
    return found if any(sure.margin is not None for sure, _ in found) else []


def table_of(result: EvaluationResult | None) -> list[AtThreshold]:
    """For the page of an alias; empty where there is no calibration."""
    if result is None or result.confidence is None:
        return []
    rows = EvaluatedRow.objects.filter(evaluation=result.evaluation_id).values_list(
        "body__adapter__least_sure", "body__adapter__reasoning_tokens", "adapter_exact"
    )
    answers = [(Sureness(margin, tokens), right) for margin, tokens, right in rows]
    return at_thresholds(Calibration.model_validate(result.confidence), answers)
