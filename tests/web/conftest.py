"""Fixtures of the platform's tests."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.world import World


@pytest.fixture
def world(db: None) -> "World":
    from tests.world import make_world  # noqa: PLC0415 - imports models, which need the settings of pytest_configure

    return make_world()


@pytest.fixture(scope="session", autouse=True)
def servers(stores: None) -> None:
    """The tests of the platform get the servers without asking; those of the workers run without any."""
