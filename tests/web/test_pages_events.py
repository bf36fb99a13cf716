"""The live stream of a run: news as they come, the rest after a reconnect, and no thread held by a viewer."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.core.asgi import get_asgi_application
from django.db import connections
from django.test import AsyncClient

from stillhouse.jobs.actions import finish_job, report_job
from stillhouse.jobs.claiming import claim_job
from stillhouse.jobs.models import Job
from stillhouse.training.control import retry_run
from stillhouse.training.models import TrainingRun
from stillhouse.web.views import run_events
from tests.registry import started_run
from tests.world import World
from workers.contract import JobFailure, MetricPoint, ReportRequest

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
async def quick(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Short pauses; and no connection outlives its use, or the test database could not be dropped."""
    monkeypatch.setattr(run_events, "POLL_SECONDS", 0.05)
    monkeypatch.setitem(connections.databases["default"], "CONN_MAX_AGE", 0)
    yield
    await sync_to_async(connections.close_all)()


@pytest.fixture
def run(transactional_db: None) -> tuple[World, TrainingRun]:
    from tests.world import make_world  # noqa: PLC0415 - imports models

    world = make_world()
    return world, started_run(world.expert)


def report(job_id: str, token: str, steps: range, total: int = 40) -> None:
    metrics = [MetricPoint(step=step, values={"loss": 1.0 / step}) for step in steps]
    report_job(
        job_id=job_id,
        token=token,
        report=ReportRequest(
            token=token,
            phase="training",
            message="Learning.",
            step=steps[-1],
            total_steps=total,
            metrics=metrics,
        ),
    )


def fail(job_id: str, token: str, fault: Any = "user") -> None:
    finish_job(
        job_id=job_id, token=token, failure=JobFailure(fault=fault, code="bad_data", message="Mend it.")
    )


async def events(world: World, run: TrainingRun, **headers: str) -> AsyncIterator[tuple[str, Any]]:
    """The stream, event by event, as (name, data)."""
    client = AsyncClient()
    await client.aforce_login(
        world.expert.user, backend="allauth.account.auth_backends.AuthenticationBackend"
    )
    response: Any = await client.get(f"/w/acme/runs/{run.pk}/events/", headers=headers)
    assert response["Content-Type"] == "text/event-stream" and response["Cache-Control"] == "no-store"
    async for chunk in response.streaming_content:
        fields = dict(line.split(": ", 1) for line in chunk.decode().splitlines() if ": " in line)
        if "event" in fields:
            yield fields["event"], json.loads(fields["data"])


async def all_events(world: World, run: TrainingRun, **headers: str) -> list[tuple[str, Any]]:
    async with asyncio.timeout(20):
        return [event async for event in events(world, run, **headers)]


async def test_a_viewer_follows_a_run_to_its_end(run: tuple[World, TrainingRun]) -> None:
    world, item = run
    job = item.job_id
    seen: list[tuple[str, Any]] = []
    async with asyncio.timeout(20):
        async for name, data in events(world, item):
            seen.append((name, data))
            if name == "job" and data["state"] == "queued":
                claimed = await sync_to_async(claim_job)(job_id=job, worker="w")
                await sync_to_async(report)(job, claimed.token, range(1, 11))
            elif name == "job" and data["step"] == 10:
                await sync_to_async(report)(job, claimed.token, range(11, 14))
            elif name == "job" and data["step"] == 13 and data["state"] == "running":
                await sync_to_async(fail)(job, claimed.token)
    assert [point["step"] for name, data in seen if name == "points" for point in data] == list(range(1, 14))
    assert seen[-1] == ("end", {"state": "failed"})


async def test_a_reconnect_brings_only_the_rest(run: tuple[World, TrainingRun]) -> None:
    world, item = run
    claimed = await sync_to_async(claim_job)(job_id=item.job_id, worker="w")
    await sync_to_async(report)(item.job_id, claimed.token, range(1, 21))
    await sync_to_async(fail)(item.job_id, claimed.token)
    seen = await all_events(world, item, **{"last-event-id": "1.15"})
    assert [point["step"] for name, data in seen if name == "points" for point in data] == list(range(16, 21))
    assert "reset" not in [name for name, _ in seen]


@pytest.mark.parametrize("from_start", [False, True])
async def test_the_curve_goes_on_over_attempts_and_begins_anew_only_from_the_start(
    from_start: bool, run: tuple[World, TrainingRun]
) -> None:
    world, item = run
    first = await sync_to_async(claim_job)(job_id=item.job_id, worker="w")
    await sync_to_async(report)(item.job_id, first.token, range(1, 11))
    await sync_to_async(fail)(item.job_id, first.token)
    await sync_to_async(retry_run)(by=world.expert, run=item, from_start=from_start)
    second = await sync_to_async(claim_job)(job_id=item.job_id, worker="w")
    await sync_to_async(report)(item.job_id, second.token, range(5, 8))
    await sync_to_async(fail)(item.job_id, second.token)
    seen = await all_events(world, item, **{"last-event-id": "1.10"})
    names = [name for name, _ in seen]
    assert ("reset" in names) == from_start and names[-1] == "end"
    steps = [point["step"] for name, data in seen if name == "points" for point in data]
    assert steps == list(range(5, 8) if from_start else range(1, 11))


async def test_steps_done_again_are_told_again_to_whoever_looks_on(run: tuple[World, TrainingRun]) -> None:
    """A page that was open before the worker was lost shows what one opened afterwards shows."""
    world, item = run
    first = await sync_to_async(claim_job)(job_id=item.job_id, worker="w")
    await sync_to_async(report)(item.job_id, first.token, range(1, 11))
    await sync_to_async(fail)(item.job_id, first.token, "platform")
    second = await sync_to_async(claim_job)(job_id=item.job_id, worker="w")
    told: dict[int, int] = {}
    async with asyncio.timeout(20):
        async for name, data in events(world, item, **{"last-event-id": "1.10"}):
            told.update({point["step"]: point["attempt"] for point in data} if name == "points" else {})
            if name == "job" and data["step"] == 0:
                await sync_to_async(report)(item.job_id, second.token, range(5, 8))
            elif name == "job" and data["step"] == 7 and data["state"] == "running":
                await sync_to_async(fail)(item.job_id, second.token)
    assert told == {**dict.fromkeys(range(1, 11), 1), 5: 2, 6: 2, 7: 2}


@pytest.mark.parametrize("cursor", ["", "x", "1", "1.x", "-1.-5", "9" * 30, "1." + "9" * 5000, "1.1.1"])
async def test_a_cursor_from_elsewhere_starts_at_the_beginning(
    cursor: str, run: tuple[World, TrainingRun]
) -> None:
    world, item = run
    claimed = await sync_to_async(claim_job)(job_id=item.job_id, worker="w")
    await sync_to_async(report)(item.job_id, claimed.token, range(1, 4))
    await sync_to_async(fail)(item.job_id, claimed.token)
    seen = await all_events(world, item, **{"last-event-id": cursor})
    assert [point["step"] for name, data in seen if name == "points" for point in data] == [1, 2, 3]


async def test_viewers_hold_no_threads_and_no_connections(run: tuple[World, TrainingRun]) -> None:
    """Forty people watch: the process must not have forty threads more, nor Postgres forty connections."""
    world, item = run
    cookie = await sync_to_async(_session)(world)
    before = threading.active_count()
    application = get_asgi_application()
    communicator: Any = ApplicationCommunicator  # asgiref gives it no types
    viewers = []
    for _ in range(40):
        viewer = communicator(application, _scope(item, cookie))
        await viewer.send_input({"type": "http.request", "body": b"", "more_body": False})
        viewers.append(viewer)
    for viewer in viewers:
        assert (await viewer.receive_output(timeout=20))["status"] == 200
        assert b"retry" in (await viewer.receive_output(timeout=20))["body"]
        assert b"event: job" in (await viewer.receive_output(timeout=20))["body"]
    assert threading.active_count() - before < 20
    for viewer in viewers:
        await viewer.send_input({"type": "http.disconnect"})
        await viewer.wait(timeout=20)


def _session(world: World) -> str:
    client = world.client(world.expert)
    return str(client.cookies["sessionid"].value)


def _scope(run: TrainingRun, session: str) -> dict[str, Any]:
    path = f"/w/acme/runs/{run.pk}/events/"
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"testserver"), (b"cookie", f"sessionid={session}".encode())],
        "scheme": "http",
        "server": ("testserver", 80),
        "client": ("127.0.0.1", 1),
    }


def test_the_view_of_a_job_has_no_secrets(run: tuple[World, TrainingRun]) -> None:
    job = Job.objects.get(pk=run[1].job_id)
    assert not {"token_digest", "spec"} & set(run_events.job_view(job))
