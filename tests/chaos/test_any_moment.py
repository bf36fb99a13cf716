"""Faults drawn by lot, one after the other, at moments drawn by lot. Promises as in test_faults."""

import random
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial

import pytest

from tests.chaos.house import House
from tests.world import World

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.chaos,
    pytest.mark.usefixtures("stores", "transactional_db"),
]
RUNS = 3
SECONDS = (0.2, 4.0)
"""Of one fault: shorter than any limit, so that it costs no attempt."""
PAUSE = (1.0, 4.0)
"""Seconds between two: whoever lives has time for a word."""
KILLS = 2
"""Of workers and trainers together: three would be one too many for a run that all of them hit."""
FAR = 1 << 40
"""Bytes that no test sends."""


def ended_and_started(house: House, seconds: float, *, name: str, number: signal.Signals) -> None:
    house.kill(name, number=number)
    time.sleep(seconds)
    house.processes[name].wait(60)
    house.ensure()


def stopped(house: House, seconds: float, *, name: str) -> None:
    house.kill(name, number=signal.SIGSTOP)
    time.sleep(seconds)
    house.kill(name, number=signal.SIGCONT)


def away(house: House, seconds: float, *, server: str) -> None:
    with getattr(house, server).away():
        time.sleep(seconds)


def cut(house: House, seconds: float) -> None:
    house.store.cut_after(random.randrange(1, 200_000))
    time.sleep(seconds)
    house.store.cut_after(FAR)


def answer_lost(house: House, seconds: float) -> None:
    asked = random.choice([b"/finish", b"/claim", b"/checkpoints", b"/uploads"])
    house.front.lose_answers(asked, 1)
    time.sleep(seconds)
    house.front.lose_answers(asked, 0)


Fault = Callable[[House, float], None]
FAULTS: Mapping[str, Fault] = {
    "web killed": partial(ended_and_started, name="web", number=signal.SIGKILL),
    "web restarted": partial(ended_and_started, name="web", number=signal.SIGTERM),
    "keeper killed": partial(ended_and_started, name="keeper", number=signal.SIGKILL),
    "web stopped": partial(stopped, name="web"),
    "keeper stopped": partial(stopped, name="keeper"),
    "postgres away": partial(away, server="database"),
    "broker away": partial(away, server="broker"),
    "store away": partial(away, server="store"),
    "platform away": partial(away, server="front"),
    "an upload cut": cut,
    "an answer lost": answer_lost,
}
KILLING: Mapping[str, Fault] = {
    "a worker killed": partial(ended_and_started, name="gpu-1", number=signal.SIGKILL),
    "trainers killed": lambda house, seconds: house.kill_trainers(),
}


def test_whatever_happens_at_any_moment(house: House, world: World) -> None:
    """Against the lease that a platform has unless told otherwise: web may take a while to start again."""
    house.different = {"LEASE_SECONDS": "60"}
    house.kill("web", "keeper")
    house.ensure()
    runs = [house.start_run(world, data_name=f"Clauses {number}") for number in range(RUNS)]
    house.training(runs[0])
    house.hit_now()
    kills = 0
    while not all(house.job(run).ended for run in runs):
        faults = {**FAULTS, **KILLING} if kills < KILLS else FAULTS
        name, seconds = random.choice(list(faults)), random.uniform(*SECONDS)
        kills += name in KILLING
        print(f"{name}, {seconds:.1f} s")  # what a failed round shows
        faults[name](house, seconds)
        time.sleep(random.uniform(*PAUSE))
    for run in runs:
        house.check_success(run)
