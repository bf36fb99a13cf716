"""Writes of evaluations: asking for one, and keeping what it found."""

from collections.abc import Iterable
from itertools import islice

from django.db import transaction

from stillhouse.accounts.access import require
from stillhouse.accounts.models import Membership, User
from stillhouse.adapters.models import CANDIDATE, AdapterVersion
from stillhouse.audit.actions import record
from stillhouse.core.errors import Conflict, NotFound, UserError
from stillhouse.core.text import storable_json
from stillhouse.datasets.queries import check_not_erased
from stillhouse.evaluations.confidence import judged_rows
from stillhouse.evaluations.isotonic import fit
from stillhouse.evaluations.models import EvaluatedRow, Evaluation, EvaluationResult
from stillhouse.evaluations.queries import latest_evaluation
from stillhouse.jobs.actions import queue_job
from stillhouse.jobs.models import Kind
from workers.contract import EvaluateSpec, EvaluationRow, EvaluationSummary, SplitSpec

QUEUE = "cpu"
MAX_TOKENS = 2048
"""Reasoning bases need room to think before they answer; the engine's context bounds it further."""
PLAIN_MAX_TOKENS = 512
BATCH = 500


@transaction.atomic
def queue_evaluation(*, version: AdapterVersion, by: User | None = None) -> Evaluation:
    """Queue the version beside its base, on the run's evaluation data or the rows that the run held out.

    Endpoint and grant are filled in when a worker claims the job: a secret does not wait in a queue.
    """
    run = version.run
    think = run.spec.think
    spec = EvaluateSpec(
        base_model=run.base_id,
        adapter_model=version.serving_name,
        endpoint="",
        api_key="",
        split=None
        if run.eval_data
        else SplitSpec(share=run.spec.heldout_share, seed=run.spec.seed, group=run.spec.heldout_group),
        max_tokens=PLAIN_MAX_TOKENS if think.family == "plain" else MAX_TOKENS,
        think=think,
    )
    evaluation = Evaluation(
        version=version,
        data=run.eval_data or run.data,
        heldout_share=0 if run.eval_data else run.spec.heldout_share,
    )
    evaluation.job = queue_job(
        workspace=run.workspace,
        kind=Kind.EVALUATE,
        queue=QUEUE,
        subject=evaluation.id,
        spec=spec.model_dump(mode="json"),
        by=by,
    )
    evaluation.save(force_insert=True)
    record(
        workspace=run.workspace,
        by=by,
        action="evaluation.queued",
        object_id=evaluation.id,
        object_name=str(version),
        details={"version": version.id, "data_sha256": evaluation.data.sha256},
    )
    return evaluation


@transaction.atomic
def request_evaluation(*, by: Membership, version: AdapterVersion) -> Evaluation:
    """Evaluate a candidate again, after an evaluation that failed or was cancelled."""
    if version.adapter.workspace_id != by.workspace_id:
        raise NotFound("adapter version")
    require(by, "run.start")
    locked = AdapterVersion.objects.select_for_update().get(pk=version.pk)
    check_not_erased(version.run.eval_data or version.run.data)
    if locked.state != CANDIDATE:
        raise Conflict("not_a_candidate", f"{version} is {locked.state}: only a candidate is evaluated.")
    latest = latest_evaluation(version)
    if latest and not latest.job.ended:
        raise Conflict("evaluation_running", f"{version} is being evaluated already.")
    if latest and EvaluationResult.objects.filter(evaluation=latest).exists():
        raise Conflict("already_evaluated", f"{version} has been evaluated already.")
    return queue_evaluation(version=locked, by=by.user)


@transaction.atomic
def record_result(
    *, evaluation: Evaluation, summary: EvaluationSummary, rows: Iterable[EvaluationRow], rows_sha256: str
) -> EvaluationResult:
    """Keep what an evaluation found, once; the same result again changes nothing.

    Raises UserError `result_mismatch` when rows and summary do not agree, Conflict for a second, other
    result.
    """
    Evaluation.objects.select_for_update().get(pk=evaluation.pk)
    existing = EvaluationResult.objects.filter(evaluation=evaluation).first()
    if existing:
        if existing.rows_sha256 != rows_sha256:
            raise Conflict("already_evaluated", "This evaluation has a result already.")
        return existing
    rows = list(rows)
    count, base_exact, adapter_exact = _store_rows(evaluation, rows)
    if (count, base_exact, adapter_exact) != (summary.rows, summary.base.exact, summary.adapter.exact):
        raise UserError(
            "result_mismatch",
            f"The summary speaks of {summary.rows} rows, {summary.base.exact} and "
            f"{summary.adapter.exact} of them exact; there are {count} ({base_exact} and {adapter_exact}).",
            "rows.jsonl",
        )
    calibration = fit(judged_rows(rows))
    result = EvaluationResult.objects.create(
        evaluation=evaluation,
        summary_body=summary.model_dump(mode="json"),
        rows_sha256=rows_sha256,
        confidence=calibration.model_dump(mode="json") if calibration else None,
    )
    version = evaluation.version
    record(
        workspace=version.adapter.workspace,
        by=None,
        action="evaluation.finished",
        object_id=evaluation.id,
        object_name=str(version),
        details={
            "rows": count,
            "base_exact": base_exact,
            "adapter_exact": adapter_exact,
            "rows_sha256": rows_sha256,
        },
    )
    return result


def _store_rows(evaluation: Evaluation, rows: Iterable[EvaluationRow]) -> tuple[int, int, int]:
    """Returns how many rows there were, and how many of them base and adapter answered exactly."""
    count = base_exact = adapter_exact = 0
    remaining = iter(rows)
    while batch := [_stored(evaluation, row) for row in islice(remaining, BATCH)]:
        EvaluatedRow.objects.bulk_create(batch)
        count += len(batch)
        base_exact += sum(row.base_exact for row in batch)
        adapter_exact += sum(row.adapter_exact for row in batch)
    return count, base_exact, adapter_exact


def _stored(evaluation: Evaluation, row: EvaluationRow) -> EvaluatedRow:
    return EvaluatedRow(
        evaluation=evaluation,
        index=row.index,
        body=storable_json(row.model_dump(mode="json")),
        base_exact=row.base.scores.get("exact_match", 0) >= 1,
        adapter_exact=row.adapter.scores.get("exact_match", 0) >= 1,
    )
