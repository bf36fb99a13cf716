"""What stands in front of the platform and of the store answers in their place, as reverse proxies do while
what is behind them starts: with 404, or with a page that says sorry. Promises as in test_faults."""

import time

import pytest

from tests.chaos.house import PATIENCE, House
from tests.chaos.test_faults import rode_out, went_on
from tests.proxy import SORRY, STARTING
from tests.waiting import wait_for
from tests.world import World

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.chaos,
    pytest.mark.usefixtures("stores", "transactional_db"),
]


def test_a_proxy_answers_for_the_platform(house: House, world: World) -> None:
    """Its 404 ends no run."""
    rode_out(house, world, house.front.answering(STARTING), seconds=6)


def test_a_proxy_answers_for_the_platform_at_the_finish(house: House, world: World) -> None:
    """Its page is no receipt: a worker that took it for one would throw its result away."""
    rode_out(house, world, house.front.answering(SORRY), seconds=10, epochs=8)


def test_a_proxy_answers_for_the_store(house: House, world: World) -> None:
    """Its 404 is no lost checkpoint, its page none that was stored."""
    run = house.start_run(world)
    house.checkpointed(run)
    with house.store.answering(STARTING):
        house.kill(house.job(run).worker)
        wait_for(lambda: house.job(run).attempt == 2 and house.job(run).phase == "downloading", PATIENCE)
        time.sleep(5)
    house.training(run, attempt=2)
    with house.store.answering(SORRY):
        time.sleep(6)
    attempts = house.check_success(run)
    assert [attempt.outcome for attempt in attempts] == ["lost", "succeeded"]
    went_on(attempts)
