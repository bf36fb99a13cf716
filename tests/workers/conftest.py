"""Fixtures of the workers' tests."""

from collections.abc import Iterator

import pytest

from tests.workers.standin import PlatformStandIn


@pytest.fixture
def platform() -> Iterator[PlatformStandIn]:
    """The platform as a worker sees it, on a port of its own."""
    stand_in = PlatformStandIn()
    server = stand_in.start()
    yield stand_in
    server.shutdown()
    server.server_close()
