"""The platform in this process, a browser, and the people who visit.

What needs the settings is imported inside the fixtures: this file may be read before they are there.
"""

import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from django.core.asgi import get_asgi_application
from django.db import connections
from playwright.sync_api import Browser

from tests.proxy import Proxy

if TYPE_CHECKING:
    from tests.e2e.visits import Visit
    from tests.world import World


@pytest.fixture
def world(transactional_db: None) -> "World":
    from tests.world import make_world  # noqa: PLC0415

    return make_world()


@pytest.fixture
def site(transactional_db: None, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Django under uvicorn in this process: it sees the test database. Yields its address."""
    address = os.environ.get("STILLHOUSE_TEST_URL", "http://127.0.0.1:8000")
    settings.ALLOWED_HOSTS = ["127.0.0.1"]
    monkeypatch.setitem(connections.databases["default"], "CONN_MAX_AGE", 0)
    config = uvicorn.Config(
        get_asgi_application(),
        host="127.0.0.1",
        port=urlsplit(address).port or 80,
        log_level="warning",
        lifespan="off",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="site", daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.05)
    yield address
    server.should_exit = server.force_exit = True
    thread.join(timeout=10)


@pytest.fixture
def front(site: str) -> Iterator[Proxy]:
    """What stands between a browser and the site."""
    proxy = Proxy(site)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from tests.e2e.browser import chromium  # noqa: PLC0415

    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = (
        "true"  # Playwright keeps an event loop in the thread of the test
    )
    with chromium() as found:
        yield found
    del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]


@pytest.fixture
def erin(browser: Browser, site: str, world: "World") -> "Iterator[Visit]":
    """The expert, at her desk."""
    from tests.e2e.visits import Visit  # noqa: PLC0415

    visit = Visit(browser, site, world.expert.user.email)
    yield visit
    visit.context.close()


@pytest.fixture
def lee(browser: Browser, site: str, world: "World") -> "Iterator[Visit]":
    """The lead, at his."""
    from tests.e2e.visits import Visit  # noqa: PLC0415

    visit = Visit(browser, site, world.lead.user.email)
    yield visit
    visit.context.close()
