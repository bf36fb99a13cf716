"""One house for all the faults."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.chaos.house import Figures, House
    from tests.stores import Stores
    from tests.world import World

FIGURES: "pytest.StashKey[list[Figures]]" = pytest.StashKey()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """CHAOS_ROUNDS=n: every fault n times in one session, on the same servers and processes."""
    rounds = int(os.environ.get("CHAOS_ROUNDS", "1"))
    if rounds > 1:
        metafunc.fixturenames.append("round_number")
        metafunc.parametrize("round_number", range(1, rounds + 1), ids="round{}".format)


@pytest.fixture(scope="session")
def houses(request: pytest.FixtureRequest) -> Iterator["list[House]"]:
    made: list[House] = []
    yield made
    for house in made:
        house.stop()
        request.config.stash[FIGURES] = house.figures


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What each fault cost; also into the file CHAOS_FIGURES, for `benchmarks/chaos.py`."""
    figures = config.stash.get(FIGURES, [])
    if not figures:
        return
    terminalreporter.section("faults")
    for row in figures:
        terminalreporter.line(json.dumps(asdict(row)))
    if file := os.environ.get("CHAOS_FIGURES"):
        with Path(file).open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(asdict(row)) + "\n" for row in figures)


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
