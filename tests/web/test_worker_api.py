"""The calls of workers and agents over HTTP: who may make them, and every refusal."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import connection
from pytest_django.fixtures import Settings

from stillhouse.adapters.models import AdapterVersion
from stillhouse.datasets.models import DatasetVersion
from stillhouse.jobs.actions import reap_lost_leases
from stillhouse.jobs.models import Job, Metric
from stillhouse.serving.actions import add_pool
from tests.registry import POOL, pool_report, started_run
from tests.web.attempts import lose
from tests.web.worker_calls import refused, started, state, trained
from tests.world import World, anybody, fetch, sha256
from workers.contract import CONTRACT_VERSION

pytestmark = pytest.mark.django_db


def test_a_claim_asks_the_database_little(
    world: World, django_assert_max_num_queries: Callable[[int], AbstractContextManager[object]]
) -> None:
    """Every statement is a way there and back while other workers wait; the transaction's own count too."""
    run = started_run(world.expert)
    worker = world.worker(run.job)
    with django_assert_max_num_queries(8):
        worker.claim()


@pytest.mark.parametrize("call", ["claim", "report", "uploads", "finish"])
@pytest.mark.parametrize("bearer", ["", "wrong", "wörng", "agent"])
def test_without_the_workers_token_nothing_is_said(world: World, call: str, bearer: str) -> None:
    job = world.dataset().job
    given = django_settings.AGENT_TOKEN if bearer == "agent" else bearer
    refused(world.worker(job).post(call, {}, bearer=given), 401, "bad_worker_token")
    assert state(job) == "queued"


@pytest.mark.parametrize("call", ["claim", "report", "uploads", "finish"])
def test_a_signed_in_person_is_no_worker(world: World, call: str) -> None:
    job = world.dataset().job
    for member in (world.expert, world.admin, world.outsider):
        response = world.client(member).post(
            f"/worker/v1/jobs/{job.pk}/{call}", "{}", content_type="application/json"
        )
        refused(response, 401, "bad_worker_token")


def test_only_post_is_answered(world: World) -> None:
    job = world.dataset().job
    for call in ("claim", "report", "uploads", "finish"):
        assert anybody().get(f"/worker/v1/jobs/{job.pk}/{call}").status_code == 405


def test_a_job_that_is_not_there(world: World) -> None:
    worker = world.worker("job_none")
    refused(worker.post("claim", {"worker": "w"}), 404, "unknown_job")
    refused(worker.post("report", {}), 409, "stale_token")
    refused(worker.post("finish", {"cancelled": True}), 404, "unknown_job")


def test_the_second_of_two_claims_is_refused(world: World) -> None:
    job = world.dataset().job
    world.worker(job).claim()
    assert "running" in refused(world.worker(job).post("claim", {"worker": "w2"}), 409, "not_claimable")


@pytest.mark.parametrize("version", [0, CONTRACT_VERSION - 1, CONTRACT_VERSION + 1, "1", None, [1]])
def test_another_version_of_the_contract_gets_no_work(world: World, version: Any) -> None:
    job = world.dataset().job
    body = {"worker": "w", "contract": version, "something_new": 1}
    message = refused(world.worker(job).post("claim", body), 426, "contract_too_old")
    assert "Upgrade" in message and state(job) == "queued"


@pytest.mark.parametrize(
    ("call", "body"),
    [
        ("claim", {}),
        ("claim", {"worker": ""}),
        ("claim", {"worker": "w", "extra": 1}),
        ("report", {"step": -1}),
        ("report", {"step": "x"}),
        ("report", {"metrics": [{"step": 1, "values": {}}] * 1001}),
        ("uploads", {"files": []}),
        ("uploads", {"files": [{"name": "../../etc/passwd", "size": 1, "sha256": "0" * 64}]}),
        ("uploads", {"files": [{"name": "rows.jsonl", "size": 1, "sha256": "0" * 64}]}),
        ("finish", {}),
        ("finish", {"result": {}, "cancelled": True}),
    ],
)
def test_a_message_that_is_wrong_is_refused_by_field(world: World, call: str, body: dict[str, Any]) -> None:
    job = world.dataset().job
    worker = world.worker(job)
    if call != "claim":
        worker.claim()
    refused(worker.post(call, body), 400, "bad_request")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"nul\0", b"\xff\xfe", b"[" * 100_000])
def test_what_is_not_json_is_refused(world: World, body: bytes) -> None:
    job = world.dataset().job
    response = anybody().post(
        f"/worker/v1/jobs/{job.pk}/claim",
        body,
        content_type="application/json",
        headers={"authorization": f"Bearer {django_settings.WORKER_TOKEN}"},
    )
    refused(response, 400, "bad_request")


def test_a_body_that_is_too_large_is_refused(world: World, settings: Settings) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    worker = world.worker(world.dataset().job)
    worker.claim()
    refused(worker.post("report", {"log_tail": "x" * 2000}), 413, "bad_request")


def test_cancelling_reaches_the_worker(world: World) -> None:
    run = started(world)
    worker = world.worker(run.job)
    worker.claim()
    world.client(world.expert).post(f"/w/acme/runs/{run.pk}/cancel/")
    assert worker.post("report", {}).json() == {"action": "cancel"}
    assert worker.post("finish", {"cancelled": True}).status_code == 200
    assert state(run.job) == "cancelled" and not AdapterVersion.objects.exists()


def test_a_full_disk_of_postgres_takes_no_points_and_no_run_either(world: World) -> None:
    """The table of points cannot grow; the job's own row, which is there, says that the attempt lives."""
    run = started_run(world.expert)
    worker = world.worker(run.job)
    token = worker.claim()["token"]
    lose(run.job)
    body = {"token": token, "phase": "training", "step": 3, "metrics": [{"step": 3, "values": {"loss": 1.0}}]}
    with connection.cursor() as cursor:
        cursor.execute(
            """CREATE FUNCTION pg_temp.no_room() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$;
            CREATE TRIGGER full_disk BEFORE INSERT ON jobs_metric
            FOR EACH ROW EXECUTE FUNCTION pg_temp.no_room()"""
        )
        assert worker.post("report", body).status_code == 507
        job = Job.objects.get(pk=run.job_id)
        assert (reap_lost_leases(), job.state, job.step) == (0, "running", 0)
        refused(worker.post("report", {**body, "token": "another"}), 409, "stale_token")
        cursor.execute("DROP TRIGGER full_disk ON jobs_metric")
    assert worker.post("report", body).status_code == 200
    assert Metric.objects.filter(job=run.job_id).count() == 1


def test_nothing_of_another_workspace_is_reachable_through_a_job(world: World) -> None:
    """A job names its own data only, and its evaluation's grant is for its own workspace."""
    mine = world.dataset()
    theirs = world.dataset(by=world.outsider)
    assert theirs.job.workspace == world.outsider.workspace
    inputs = world.worker(theirs.job).claim()["inputs"]
    assert [item["sha256"] for item in inputs] == [theirs.sha256]
    assert DatasetVersion.objects.get(pk=mine.pk).job.state == "queued"


# agents -----------------------------------------------------------------------------------------------------


def sync(pool: str, body: dict[str, Any], bearer: str | None = None) -> Any:
    return anybody().post(
        f"/worker/v1/pools/{pool}/sync",
        json.dumps(body),
        content_type="application/json",
        headers={"authorization": f"Bearer {django_settings.AGENT_TOKEN if bearer is None else bearer}"},
    )


def test_an_agent_learns_what_to_hold(world: World) -> None:
    version = trained(world)
    add_pool(name=POOL, base=version.run.base)
    report = pool_report().model_dump(mode="json")
    answer = sync(POOL, report)
    assert answer.status_code == 200, answer.content
    [wanted] = answer.json()["wanted"]
    assert (wanted["name"], wanted["digest"]) == (version.serving_name, version.digest)
    files = {item["name"]: item for item in wanted["files"]}
    assert sha256(fetch(files["manifest.json"]["url"])) == version.digest
    assert set(files) == {"adapter_model.safetensors", "adapter_config.json", "manifest.json"}


def test_an_agents_call_is_refused_like_a_workers(world: World) -> None:
    report = pool_report().model_dump(mode="json")
    refused(sync(POOL, report, bearer=django_settings.WORKER_TOKEN), 401, "bad_worker_token")
    refused(sync("nowhere", report), 404, "bad_request")
    refused(sync(POOL, {**report, "contract": 99}), 426, "contract_too_old")
    refused(sync(POOL, {}), 400, "bad_request")
