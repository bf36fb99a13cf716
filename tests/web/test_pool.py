"""The pool of database connections after Postgres was away."""

from collections.abc import Iterator
from threading import Barrier, Thread
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from django.conf import settings
from django.db import OperationalError
from pytest_django import DjangoDbBlocker

from stillhouse.core.postgres.base import DatabaseWrapper
from stillhouse.settings import _database
from tests.proxy import Proxy

IDLE = 12
"""Connections that lie idle in the pool when Postgres goes: tried one by one, with pauses of 1, 2, 4 ...
seconds (psycopg_pool's own check), they would outlast the pool's timeout."""

WAIT = 4.0
"""Seconds for which a request waits for a connection; less than in production, so that the test is quick."""


@pytest.fixture
def proxy(servers: None) -> Iterator[Proxy]:
    proxy = Proxy(settings.DATABASE_URL)
    yield proxy
    proxy.close()


@pytest.fixture
def wrappers(proxy: Proxy, django_db_blocker: DjangoDbBlocker) -> Iterator[list[DatabaseWrapper]]:
    """What as many threads have: one alias, one pool."""
    with django_db_blocker.unblock():
        yield from _wrappers(proxy)


def _wrappers(proxy: Proxy) -> Iterator[list[DatabaseWrapper]]:
    through = urlsplit(proxy.url)._replace(path="/postgres")
    configured: dict[str, Any] = {
        **_database(urlunsplit(through)),
        "AUTOCOMMIT": True,
        "TIME_ZONE": None,
        "ATOMIC_REQUESTS": False,
        "TEST": {},
    }
    configured["OPTIONS"]["pool"]["timeout"] = WAIT
    made = [DatabaseWrapper(configured, alias="through_proxy") for _ in range(IDLE)]
    for wrapper in made:
        wrapper.inc_thread_sharing()
    yield made
    for wrapper in made:
        wrapper.close()
    made[0].close_pool()


def answers(wrapper: DatabaseWrapper) -> bool:
    try:
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")
            return bool(cursor.fetchone() == (1,))
    except OperationalError:
        return False
    finally:
        wrapper.close()


def fill(wrappers: list[DatabaseWrapper]) -> None:
    """Have every thread hold a connection at the same time, so that the pool has that many."""
    together = Barrier(IDLE)

    def hold(wrapper: DatabaseWrapper) -> None:
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")
            together.wait(timeout=20)
        wrapper.close()

    threads = [Thread(target=hold, args=(wrapper,)) for wrapper in wrappers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_the_first_request_after_a_restart_is_answered(proxy: Proxy, wrappers: list[DatabaseWrapper]) -> None:
    fill(wrappers)
    assert wrappers[0].pool.get_stats()["pool_available"] == IDLE
    with proxy.away():
        pass
    assert [answers(wrapper) for wrapper in wrappers] == [True] * IDLE


def test_the_first_request_after_an_outage_is_answered(proxy: Proxy, wrappers: list[DatabaseWrapper]) -> None:
    """Requests that came in vain leave nothing behind that the next one has to wait for."""
    fill(wrappers)
    with proxy.away():
        assert not answers(wrappers[0])
        assert not answers(wrappers[1])
    assert [answers(wrapper) for wrapper in wrappers] == [True] * IDLE
