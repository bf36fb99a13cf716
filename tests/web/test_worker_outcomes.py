"""The whole way of each kind of job over HTTP, and results that do not hold up."""

from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db.models.functions import Now

from stillhouse.accounts.grants import read_grant
from stillhouse.adapters.models import AdapterVersion
from stillhouse.core import blobs
from stillhouse.datasets.models import DatasetReport
from stillhouse.evaluations.models import Evaluation, EvaluationResult
from stillhouse.jobs.actions import reap_lost_leases
from stillhouse.jobs.models import Job
from stillhouse.serving.actions import add_pool
from stillhouse.serving.models import Placement
from stillhouse.training.models import TrainingRun
from tests.registry import DEMO_BASE, POOL, at_once, validation_report
from tests.web.attempts import failure_of
from tests.web.worker_calls import REPORT, adapter_files, finish_with, refused, started, state, trained
from tests.world import World, fetch, sha256
from workers.contract import (
    ClaimAnswer,
    EvaluateSpec,
    EvaluationRow,
    EvaluationSummary,
    Grade,
    SideSummary,
    TrainSpec,
    ValidateSpec,
)

pytestmark = pytest.mark.django_db


# validate ---------------------------------------------------------------------------------------------------


def test_a_file_is_claimed_read_checked_and_finished(world: World) -> None:
    version = world.dataset()
    worker = world.worker(version.job)
    answer = ClaimAnswer.model_validate(worker.claim())
    assert (answer.kind, answer.attempt, answer.subject) == ("validate", 1, version.pk)
    assert answer.lease_seconds == django_settings.LEASE_SECONDS and ValidateSpec.model_validate(answer.spec)
    [data] = answer.inputs
    assert (data.name, data.size, data.sha256) == ("data", version.size, version.sha256)
    assert sha256(fetch(data.url)) == version.sha256
    told = worker.post("report", {"phase": "reading", "step": 3, "total_steps": 10})
    assert told.json() == {"action": "continue"} and state(version.job) == "running"
    assert worker.post("finish", {"result": REPORT}).status_code == 200
    assert state(version.job) == "succeeded" and DatasetReport.objects.get(version=version).valid == 10
    again = worker.post("finish", {"result": REPORT})
    assert again.status_code == 200 and DatasetReport.objects.count() == 1


def test_a_file_without_one_good_row_is_a_check_that_succeeded(world: World) -> None:
    version = world.dataset()
    worker = world.worker(version.job)
    worker.claim()
    worker.post("finish", {"result": validation_report(valid=0, with_reasoning=0).model_dump(mode="json")})
    assert state(version.job) == "succeeded" and DatasetReport.objects.get(version=version).valid == 0


def test_text_that_postgres_cannot_hold_does_not_stop_a_job(world: World) -> None:
    version = world.dataset()
    worker = world.worker(version.job)
    worker.claim()
    told = worker.post("report", {"phase": "a\0", "message": "\ud83d lone", "log_tail": "\0" * 100})
    assert told.status_code == 200
    worker.post("finish", {"result": {**REPORT, "samples": [{"messages": [{"content": "x\0\udfff"}]}]}})
    assert state(version.job) == "succeeded"
    assert DatasetReport.objects.get().body["samples"] == [{"messages": [{"content": "x��"}]}]


def test_a_failure_of_the_data_is_final_and_in_words(world: World) -> None:
    version = world.dataset()
    worker = world.worker(version.job)
    worker.claim()
    failure = {"fault": "user", "code": "not_utf8", "message": "Line 3 is not UTF-8. Save the file as UTF-8."}
    assert worker.post("finish", {"failure": failure}).status_code == 200
    assert state(version.job) == "failed" and version.job.failure == failure


def test_a_result_that_does_not_hold_up_is_tried_again_and_then_fails(world: World) -> None:
    version = world.dataset()
    for attempt in (1, 2, 3):
        worker = world.worker(version.job)
        assert worker.claim()["attempt"] == attempt
        assert worker.post("finish", {"result": {"rows": "many"}}).status_code == 200
    assert state(version.job) == "failed"
    assert (
        failure_of(version.job).code == "bad_result"
        and "ValidationReport.rows" in failure_of(version.job).message
    )


# train ------------------------------------------------------------------------------------------------------


def test_a_run_ends_in_a_candidate_placed_and_about_to_be_evaluated(world: World) -> None:
    run = started(world)
    add_pool(name=POOL, base=run.base)
    worker = world.worker(run.job)
    answer = ClaimAnswer.model_validate(worker.claim())
    assert answer.kind == "train" and answer.subject == run.pk
    assert TrainSpec.model_validate(answer.spec) == run.spec
    assert [(item.name, item.sha256) for item in answer.inputs] == [("data", run.data.sha256)]
    files = adapter_files(run)
    result = {"manifest_sha256": sha256(files["manifest.json"])}
    sent = worker.send_files(files)
    assert worker.post("finish", {"result": result, "files": sent}).status_code == 200
    version = AdapterVersion.objects.get(run=run)
    assert state(run.job) == "succeeded" and version.state == "candidate"
    assert version.digest == result["manifest_sha256"] and version.number == 1
    assert Placement.objects.get(version=version).pool_id == POOL
    assert Evaluation.objects.get(version=version).job.state == "queued"
    for name, body in files.items():
        assert b"".join(blobs.read(sha256(body))) == body
        assert blobs.staged_size(f"staging/jobs/{run.job_id}/1/{name}") is None
    assert worker.post("finish", {"result": result, "files": sent}).status_code == 200
    assert AdapterVersion.objects.count() == 1 and Evaluation.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_the_same_finish_twice_at_once_makes_one_version(world: World) -> None:
    run = started(world)
    worker = world.worker(run.job)
    worker.claim()
    files = adapter_files(run)
    body = {"result": {"manifest_sha256": sha256(files["manifest.json"])}, "files": worker.send_files(files)}
    answers = at_once(*[lambda: worker.post("finish", body)] * 2)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert AdapterVersion.objects.count() == 1 and Evaluation.objects.count() == 1


def broken(files: dict[str, bytes], how: str, run: TrainingRun) -> tuple[dict[str, bytes], str]:
    """Files with something wrong, and the code that must come of it."""
    if how == "no weights":
        return {
            name: body for name, body in files.items() if name != "adapter_model.safetensors"
        }, "file_missing"
    if how == "other weights":
        return {**files, "adapter_model.safetensors": b"weights of somebody else"}, "manifest_mismatch"
    if how == "no manifest":
        return {**files, "manifest.json": b"[]"}, "bad_result"
    changes: dict[str, dict[str, Any]] = {
        "other run": {"run": "run_of_somebody_else"},
        "other data": {"data_sha256": "0" * 64},
        "other spec": {"spec": run.spec.model_copy(update={"seed": 99})},
        "other template": {"template_sha256": "0" * 64},
    }
    return adapter_files(run, **changes[how]), "manifest_mismatch"


@pytest.mark.parametrize(
    "how",
    ["no weights", "other weights", "no manifest", "other run", "other data", "other spec", "other template"],
)
def test_an_adapter_that_is_not_what_its_manifest_says_is_no_version(world: World, how: str) -> None:
    run = started(world)
    worker = world.worker(run.job)
    worker.claim()
    files, code = broken(adapter_files(run), how, run)
    assert finish_with(worker, files, {"manifest_sha256": sha256(files["manifest.json"])}).status_code == 200
    assert state(run.job) == "queued" and failure_of(run.job).code == code
    assert not AdapterVersion.objects.exists() and not Evaluation.objects.exists()


def test_bytes_that_are_not_the_announced_ones_are_no_version(world: World) -> None:
    run = started(world)
    worker = world.worker(run.job)
    worker.claim()
    files = adapter_files(run)
    sent = worker.send_files(files)
    swapped = {**files, "adapter_model.safetensors": files["adapter_model.safetensors"][::-1]}
    worker.send_files(swapped)
    result = {"manifest_sha256": sha256(files["manifest.json"])}
    assert worker.post("finish", {"result": result, "files": sent}).status_code == 200
    assert state(run.job) == "queued" and failure_of(run.job).code == "digest_mismatch"


def test_a_lost_attempt_cannot_finish_over_the_next_one(world: World) -> None:
    run = started(world)
    old = world.worker(run.job, name="old")
    old.claim()
    files = adapter_files(run)
    sent = old.send_files(files)
    Job.objects.filter(pk=run.job_id).update(lease_until=Now() - timedelta(seconds=1))
    reap_lost_leases()
    new = world.worker(run.job, name="new")
    assert new.claim()["attempt"] == 2
    result = {"manifest_sha256": sha256(files["manifest.json"])}
    for call, body in [
        ("report", {}),
        ("uploads", {"files": sent}),
        ("finish", {"result": result, "files": sent}),
        ("finish", {"cancelled": True}),
    ]:
        refused(old.post(call, body), 409, "stale_token")
    assert not AdapterVersion.objects.exists() and state(run.job) == "running"
    assert finish_with(new, files, result).status_code == 200
    assert AdapterVersion.objects.count() == 1


# evaluate ---------------------------------------------------------------------------------------------------


def rows_and_summary(count: int = 4) -> tuple[bytes, dict[str, Any]]:
    def grade(exact: bool) -> Grade:
        return Grade(output='{"a": 1}', scores={"exact_match": float(exact)}, think="valid")

    rows = [
        EvaluationRow(
            index=index,
            messages=[{"role": "user", "content": f"Question {index}"}],
            expected='{"a": 1}',
            base=grade(False),
            adapter=grade(index > 0),
        )
        for index in range(count)
    ]
    sides = [
        SideSummary(exact=exact, json_fields=None, think={"valid": count}, completion_tokens=9, seconds=1.0)
        for exact in (0, count - 1)
    ]
    summary = EvaluationSummary(rows=count, base=sides[0], adapter=sides[1])
    return "".join(row.model_dump_json() + "\n" for row in rows).encode(), summary.model_dump(mode="json")


def test_an_evaluation_gets_a_grant_for_its_two_models_and_leaves_its_rows(world: World) -> None:
    version = trained(world)
    evaluation = Evaluation.objects.get(version=version)
    worker = world.worker(evaluation.job)
    answer = ClaimAnswer.model_validate(worker.claim())
    spec = EvaluateSpec.model_validate(answer.spec)
    assert spec.endpoint == f"{django_settings.STILLHOUSE_URL}/v1"
    grant = read_grant(spec.api_key)
    assert grant and grant.models == frozenset({DEMO_BASE, version.serving_name})
    assert (grant.workspace_id, grant.caller) == (world.expert.workspace_id, evaluation.job_id)
    evaluation.job.refresh_from_db()
    assert evaluation.job.spec["api_key"] == ""
    rows, summary = rows_and_summary()
    assert finish_with(worker, {"rows.jsonl": rows}, summary).status_code == 200
    assert state(evaluation.job) == "succeeded"
    result = EvaluationResult.objects.get(evaluation=evaluation)
    assert result.rows_sha256 == sha256(rows) and result.summary.adapter.exact == 3
    assert evaluation.rows.filter(adapter_exact=True).count() == 3


@pytest.mark.parametrize("how", ["fewer rows", "out of order", "not rows", "another summary"])
def test_rows_and_summary_that_disagree_are_no_result(world: World, how: str) -> None:
    evaluation = Evaluation.objects.get(version=trained(world))
    worker = world.worker(evaluation.job)
    worker.claim()
    rows, summary = rows_and_summary()
    lines = rows.splitlines(keepends=True)
    body = {
        "fewer rows": b"".join(lines[:-1]),
        "out of order": b"".join(lines[::-1]),
        "not rows": b"{}\n",
    }.get(how, rows)
    if how == "another summary":
        summary["adapter"]["exact"] = 4
    assert finish_with(worker, {"rows.jsonl": body}, summary).status_code == 200
    assert state(evaluation.job) == "queued"
    assert failure_of(evaluation.job).code in ("result_mismatch", "bad_result")
    assert not EvaluationResult.objects.exists() and not evaluation.rows.exists()
