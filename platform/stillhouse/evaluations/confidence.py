"""How likely an answer of an adapter version is right, from what its evaluation kept."""

from collections.abc import Iterable

from stillhouse.evaluations.isotonic import AtThreshold, Judged, at_thresholds
from stillhouse.evaluations.models import EvaluatedRow, EvaluationResult
from workers.contract import Calibration, EvaluationRow, Sureness


def judged_rows(rows: Iterable[EvaluationRow]) -> list[Judged]:
    """The adapter's answers; none of an evaluation that kept no margins."""
    found = [
        (
            Sureness(row.adapter.margin, row.adapter.reasoning_margin, row.adapter.reasoning_tokens),
            row.adapter.scores.get("exact_match", 0) >= 1,
        )
        for row in rows
    ]
    return found if any(sure.margin is not None for sure, _ in found) else []


def table_of(result: EvaluationResult | None) -> list[AtThreshold]:
    """For the page of an alias; empty where there is no calibration."""
    calibration = result and (result.confidence or result.calibration)
    if result is None or calibration is None:
        return []
    rows = EvaluatedRow.objects.filter(evaluation=result.evaluation_id).values_list(
        "body__adapter__margin",
        "body__adapter__reasoning_margin",
        "body__adapter__reasoning_tokens",
        "adapter_exact",
    )
    answers = [(Sureness(*sure), right) for *sure, right in rows]
    return at_thresholds(Calibration.model_validate(calibration), answers)
