"""Fixtures of the workers' tests."""

from collections.abc import Iterator

import pytest

from tests.proxy import Proxy
from tests.workers.standin import PlatformStandIn


@pytest.fixture
def platform() -> Iterator[PlatformStandIn]:
    """The platform as a worker sees it, on a port of its own."""
    stand_in = PlatformStandIn()
    server = stand_in.start()
    yield stand_in
    server.shutdown()
    server.server_close()


@pytest.fixture
def front(platform: PlatformStandIn) -> Iterator[Proxy]:
    """What stands between a worker and the platform, whose stand-in is the store, too."""
    proxy = Proxy(platform.url)
    yield proxy
    proxy.close()
