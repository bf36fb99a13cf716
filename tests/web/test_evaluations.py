"""Evaluations: what is asked for, and what is kept."""

import pytest

from stillhouse.adapters.models import AdapterVersion
from stillhouse.core.errors import Conflict, NotFound, UserError
from stillhouse.evaluations.actions import queue_evaluation, record_result, request_evaluation
from stillhouse.evaluations.confidence import table_of
from stillhouse.evaluations.models import EvaluatedRow, EvaluationResult
from stillhouse.evaluations.queries import (
    latest_evaluation,
    latest_result,
    row_counts,
    rows_page,
)
from stillhouse.jobs.control import request_cancel
from stillhouse.jobs.models import Kind
from tests.registry import (
    candidate,
    data_version,
    evaluate,
    evaluation_rows,
    register,
    sha,
    started_run,
    summary_of,
)
from tests.world import World
from workers.contract import EvaluateSpec, EvaluationRow, SplitSpec

pytestmark = pytest.mark.django_db


def test_an_evaluation_takes_the_rows_that_the_run_held_out(world: World) -> None:
    version = candidate(world.expert)
    evaluation = queue_evaluation(version=version)
    spec = EvaluateSpec.model_validate(evaluation.job.spec)
    assert (evaluation.job.kind, evaluation.job.queue, evaluation.job.subject) == (
        Kind.EVALUATE,
        "cpu",
        evaluation.id,
    )
    assert evaluation.data == version.run.data
    assert spec.split == SplitSpec(share=0.1, seed=version.run.spec.seed)
    assert (spec.base_model, spec.adapter_model) == ("smollm2-135m-instruct", version.serving_name)
    assert spec.api_key == ""


def test_an_evaluation_takes_all_rows_of_the_evaluation_data(world: World) -> None:
    held_out = data_version(world.expert, "Held out", valid=36)
    evaluation = queue_evaluation(version=register(started_run(world.expert, eval_data=held_out)))
    assert evaluation.data == held_out and evaluation.heldout_share == 0
    assert EvaluateSpec.model_validate(evaluation.job.spec).split is None


def test_a_result_is_kept_once_with_its_rows(world: World) -> None:
    version = candidate(world.expert)
    result = evaluate(version)
    assert (result.summary.rows, result.summary.base.exact, result.summary.adapter.exact) == (4, 2, 2)
    assert latest_result(version) == result
    assert EvaluatedRow.objects.count() == 4
    same = record_result(
        evaluation=result.evaluation, summary=result.summary, rows=[], rows_sha256=result.rows_sha256
    )
    assert same == result and EvaluatedRow.objects.count() == 4
    with pytest.raises(Conflict):
        record_result(evaluation=result.evaluation, summary=result.summary, rows=[], rows_sha256=sha("other"))


def test_a_summary_that_its_rows_do_not_bear_out_is_refused(world: World) -> None:
    evaluation = queue_evaluation(version=candidate(world.expert))
    rows = evaluation_rows([False] * 3, [True] * 3)
    flattering = summary_of(evaluation_rows([False] * 3, [True, True, True]))
    for wrong in (rows[:2], evaluation_rows([False] * 3, [True, True, False])):
        with pytest.raises(UserError) as caught:
            record_result(evaluation=evaluation, summary=flattering, rows=wrong, rows_sha256=sha("r"))
        assert caught.value.code == "result_mismatch"
    assert not EvaluationResult.objects.exists() and not EvaluatedRow.objects.exists()


def test_text_that_postgres_cannot_hold_is_kept_readable(world: World) -> None:
    evaluation = queue_evaluation(version=candidate(world.expert))
    [row] = evaluation_rows([False], [True])
    odd = row.model_copy(update={"adapter": row.adapter.model_copy(update={"output": "a\0b"})})
    record_result(evaluation=evaluation, summary=summary_of([odd]), rows=[odd], rows_sha256=sha("r"))
    assert EvaluatedRow.objects.get().body["adapter"]["output"] == "a\N{REPLACEMENT CHARACTER}b"


@pytest.mark.parametrize(
    ("show", "indexes"),
    [
        ("all", [0, 1, 2, 3]),
        ("changed", [1, 2]),
        ("improved", [1]),
        ("regressed", [2]),
        ("wrong", [0, 2]),
        ("both_wrong", [0]),
    ],
)
def test_rows_are_filtered_by_what_became_of_them(world: World, show: str, indexes: list[int]) -> None:
    evaluation = evaluate(candidate(world.expert)).evaluation
    assert [row.index for row in rows_page(world.lead, evaluation, show=show)] == indexes
    assert row_counts(evaluation)[show] == len(indexes)


def test_rows_come_in_pages(world: World) -> None:
    evaluation = queue_evaluation(version=candidate(world.expert))
    rows = evaluation_rows([False] * 45, [True] * 45)
    record_result(evaluation=evaluation, summary=summary_of(rows), rows=rows, rows_sha256=sha("r"))
    page = rows_page(world.expert, evaluation, page=3, size=20)
    assert [row.index for row in page] == [40, 41, 42, 43, 44] and not page.has_next()
    assert rows_page(world.expert, evaluation, page=99, size=20).number == 3
    with pytest.raises(UserError) as caught:
        rows_page(world.expert, evaluation, show="'; drop table")
    assert caught.value.code == "unknown_filter"


def test_an_evaluation_is_asked_for_again_only_after_one_that_failed(world: World) -> None:
    version = candidate(world.expert)
    first = queue_evaluation(version=version)
    with pytest.raises(Conflict) as caught:
        request_evaluation(by=world.expert, version=version)
    assert caught.value.code == "evaluation_running"
    request_cancel(by=world.expert, job=first.job)
    again = request_evaluation(by=world.expert, version=version)
    assert latest_evaluation(version) == again != first


def test_a_finished_evaluation_or_a_decided_version_is_not_evaluated_again(world: World) -> None:
    version = candidate(world.expert)
    request_cancel(by=world.expert, job=evaluate(version).evaluation.job)
    with pytest.raises(Conflict) as caught:
        request_evaluation(by=world.expert, version=version)
    assert caught.value.code == "already_evaluated"
    AdapterVersion.objects.update(state="rejected")
    with pytest.raises(Conflict) as caught:
        request_evaluation(by=world.expert, version=version)
    assert caught.value.code == "not_a_candidate"


def test_an_outsider_finds_nothing(world: World) -> None:
    version = candidate(world.expert)
    evaluation = evaluate(version).evaluation
    with pytest.raises(NotFound):
        rows_page(world.outsider, evaluation)
    with pytest.raises(NotFound):
        request_evaluation(by=world.outsider, version=version)
    assert version.evaluations.get() == evaluation


def test_margins_become_a_calibration_and_fewer_than_thirty_do_not(world: World) -> None:
    right = [number % 3 > 0 for number in range(36)]
    for count, margins, fitted in ((36, True, True), (29, True, False), (36, False, False)):
        rows = [
            row.model_copy(
                update={
                    "adapter": row.adapter.model_copy(update={"margin": 0.9 if right[row.index] else 0.1})
                }
            )
            if margins
            else row
            for row in evaluation_rows([False] * count, right[:count])
        ]
        evaluation = queue_evaluation(version=candidate(world.expert))
        digest = sha(evaluation.id)
        result = record_result(evaluation=evaluation, summary=summary_of(rows), rows=rows, rows_sha256=digest)
        assert (result.confidence is not None) is fitted
        table = table_of(result)
        assert bool(table) is fitted
        if fitted:
            assert {(row.local, row.right) for row in table} == {(24, 24)}


def test_a_row_written_before_margins_were_kept_is_still_read() -> None:
    old = evaluation_rows([True], [False])[0].model_dump(mode="json")
    for side in ("base", "adapter"):
        del old[side]["margin"], old[side]["reasoning_tokens"]
    assert EvaluationRow.model_validate(old).adapter.margin is None
