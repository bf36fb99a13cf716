"""One house for all the faults."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.chaos.house import House
    from tests.world import World


@pytest.fixture(scope="session")
def houses() -> Iterator["list[House]"]:
    made: list[House] = []
    yield made
    for house in made:
        house.stop()


@pytest.fixture
def world(transactional_db: None) -> "World":
    from tests.world import make_world  # noqa: PLC0415 - imports models, which need the settings of pytest_configure

    return make_world()


@pytest.fixture
def house(
    stores: None,
    transactional_db: None,
    houses: "list[House]",
    tmp_path_factory: pytest.TempPathFactory,
) -> "House":
    from tests.chaos.house import House  # noqa: PLC0415

    if not houses:
        houses.append(House(tmp_path_factory.mktemp("house")))
    houses[0].clear()
    return houses[0]
