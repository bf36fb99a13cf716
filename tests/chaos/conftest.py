"""One house for all the faults of a session, and a line for every round."""

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, cast

import pytest

from tests.chaos import rounds

if TYPE_CHECKING:
    from tests.chaos.house import House
    from tests.stores import Stores
    from tests.world import World

FAILED: "pytest.StashKey[list[str]]" = pytest.StashKey()
SECONDS: "pytest.StashKey[float]" = pytest.StashKey()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every fault as often as it is wanted."""
    numbers = rounds.wanted(metafunc.definition.nodeid)
    if len(numbers) > 1:
        metafunc.parametrize("chaos_round", numbers, ids=lambda number: f"round{number}", indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Round after round: what there are fewest of comes first."""

    def number(item: pytest.Item) -> int:
        return int(item.callspec.params.get("chaos_round", 0)) if hasattr(item, "callspec") else 0

    items.sort(key=number)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: "pytest.CallInfo[None]"
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the round when its test is over, whichever part of it failed. A skipped one is none."""
    report = yield
    seconds = item.stash[SECONDS] = item.stash.get(SECONDS, 0.0) + call.duration
    said = item.stash.setdefault(FAILED, [])
    if call.excinfo is not None:
        said.append("" if report.skipped else f"{report.when}: {call.excinfo.exconly(tryshort=True)}"[:400])
    if report.when == "teardown" and "" not in said:
        house = cast("House | None", item.funcargs.get("house"))
        counted = house.figures if house else []
        rounds.keep(rounds.without_number(item.nodeid), counted, seconds=seconds, why="; ".join(said))
    return report


@pytest.fixture(autouse=True)
def chaos_round(request: pytest.FixtureRequest) -> int:
    """Its number."""
    return int(getattr(request, "param", 1))


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
    servers: "Stores | None",
) -> "House":
    from tests.chaos.house import House  # noqa: PLC0415

    if not houses:
        houses.append(House(tmp_path_factory.mktemp("house"), servers))
    houses[0].clear()
    return houses[0]
