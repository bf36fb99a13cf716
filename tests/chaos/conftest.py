"""One house for all the faults."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.chaos.house import Figures, House
    from tests.world import World

FIGURES: "pytest.StashKey[list[Figures]]" = pytest.StashKey()


@pytest.fixture(scope="session")
def houses(request: pytest.FixtureRequest) -> Iterator["list[House]"]:
    made: list[House] = []
    yield made
    for house in made:
        house.stop()
        request.config.stash[FIGURES] = house.figures


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What each fault cost, as a table for benchmarks/README.md."""
    figures = config.stash.get(FIGURES, [])
    if not figures:
        return
    terminalreporter.section("faults")
    terminalreporter.line("| fault | attempts | noticed after (s) | steps done again | ended after (s) |")
    terminalreporter.line("| --- | --- | --- | --- | --- |")
    for row in figures:
        noticed = "-" if row.noticed is None else f"{row.noticed:.1f}"
        again = "-" if row.lost_steps is None else str(row.lost_steps)
        terminalreporter.line(f"| {row.fault} | {row.attempts} | {noticed} | {again} | {row.seconds:.0f} |")


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
