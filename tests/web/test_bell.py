"""The agents' doorbell on the web process, as production starts it."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest
from django.conf import settings
from django.db import connection

from stillhouse.serving.actions import add_pool, pin_version, place_version
from stillhouse.serving.use import want_version
from tests.registry import POOL, available_base, candidate
from tests.waiting import wait_for
from tests.web.gateway.process import Server, uvicorn
from tests.world import World


@pytest.fixture
def server(transactional_db: None) -> Iterator[Server]:
    with uvicorn("stillhouse.asgi:application") as server:
        yield server


def stand(server: Server, pool: str = POOL, token: str = "", **body: object) -> httpx.Response:
    return server.client.post(
        f"/worker/v1/pools/{pool}/wait",
        json=body,
        headers=[(b"authorization", f"Bearer {token or settings.AGENT_TOKEN}".encode("latin-1"))],
        timeout=20,
    )


def listening() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE query = 'LISTEN stillhouse_pools'")
        return bool(cursor.fetchone()[0])


def test_it_rings_for_whatever_changes_what_the_pool_should_hold(world: World, server: Server) -> None:
    add_pool(name="another", base=available_base())
    version = candidate(world.expert)
    with ThreadPoolExecutor(1) as threads:

        def rung(by: object) -> bool:
            """Whether the agent that stands at the door hears what `by` does."""
            standing: Future[httpx.Response] = threads.submit(
                lambda: stand(server, pool="another", seconds=60)
            )
            wait_for(listening)
            with pytest.raises(TimeoutError):
                standing.result(0.3)
            assert callable(by)
            by()
            return standing.result().status_code == 204

        assert rung(lambda: place_version(version=version))
        assert rung(lambda: pin_version(by=world.lead, version=version, pinned=True))
        assert rung(lambda: want_version(version=version))


def test_the_time_is_over_without_news(world: World, server: Server) -> None:
    assert stand(server, seconds=0.05).status_code == 204


def test_only_an_agent_may_stand_there(server: Server) -> None:
    for token in ("é", "x", settings.WORKER_TOKEN):
        assert stand(server, token=token).status_code == 401
    assert server.client.get(f"/worker/v1/pools/{POOL}/wait").status_code == 405
    for seconds in (0, 61, "x" * 2000):
        assert stand(server, seconds=seconds).status_code == 400
