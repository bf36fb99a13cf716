"""An upgrade while a run trains: the platform and the worker of the contract version before, as they were,
on the database of this one. A worker drains first; it is told so, and gets no work."""

import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from stillhouse.jobs.models import Attempt, Worker
from stillhouse.training.models import TrainingRun
from tests.chaos.house import PATIENCE, House
from tests.waiting import wait_for
from tests.world import World
from workers.contract import CONTRACT_VERSION

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("stores", "transactional_db")]
CODE = Path(__file__).parent / "before" / "code.tar.xz"
"""Made by `before/pack`. In it `before`, of the contract version before, and `same`, older code of this."""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    with tarfile.open(CODE) as packed:
        packed.extractall(folder, filter="data")
    assert contract_of(folder / "before") == CONTRACT_VERSION - 1, "tests/chaos/before/pack packs it anew"
    assert contract_of(folder / "same") == CONTRACT_VERSION
    return folder


def contract_of(source: Path) -> int:
    text = (source / "workers" / "contract" / "base.py").read_text(encoding="utf-8")
    [version] = re.findall(r"^CONTRACT_VERSION = (\d+)$", text, re.MULTILINE)
    return int(version)


def only(house: House, *names: str) -> None:
    """Have these processes run, and no other, with the lease that a platform has unless told otherwise: the
    web process may take a while to start again."""
    house.different = {"LEASE_SECONDS": "60"}
    house.kill(*house.processes)
    house.ensure(*names)


def training_before(house: House, world: World, code: Path) -> TrainingRun:
    """A run on the platform and the worker of the contract before, past its first checkpoint, and long: web
    and keeper may take a while to start again."""
    house.sources = dict.fromkeys(("web", "keeper", "gpu-1"), code / "before")
    only(house, *house.sources)
    run = house.start_run(world, epochs=100)
    house.checkpointed(run)
    house.hit()
    return run


def upgrade(house: House, *names: str) -> None:
    """Stop a process as an upgrade does, and start this code in its place."""
    for name in names:
        process = house.processes[name]
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        house.sources.pop(name)
        house.ensure(name)


def test_a_platform_is_upgraded_under_a_run_and_its_worker_after_it(
    house: House, world: World, code: Path
) -> None:
    run = training_before(house, world, code)
    upgrade(house, "web", "keeper")
    step = house.job(run).step
    house.training(run, step=step)
    attempts = house.check_success(run)
    assert [attempt.worker for attempt in attempts] == ["gpu-1"], "what it had begun it ended"

    next_run = house.start_run(world, epochs=4, data_name="After the upgrade")
    log = house.folder / "gpu-1.log"
    wait_for(lambda: "Upgrade the worker" in log.read_text(encoding="utf-8"), PATIENCE)
    known = Worker.objects.get(name="gpu-1")
    assert (known.contract, known.slots) == (CONTRACT_VERSION - 1, 0)
    page = world.client(world.expert).get("/w/acme/fleet/").content.decode()
    assert f"It speaks contract {CONTRACT_VERSION - 1}" in page
    upgrade(house, "gpu-1")
    assert [attempt.worker for attempt in house.check_success(next_run)] == ["gpu-1"]


@pytest.mark.chaos
def test_a_worker_that_drains_for_its_upgrade_costs_no_attempt(
    house: House, world: World, code: Path
) -> None:
    """Told to stop, the old worker hands its run back with a checkpoint; the new one goes on from there."""
    run = training_before(house, world, code)
    upgrade(house, "web", "keeper", "gpu-1")
    attempts = house.check_success(run)
    assert [attempt.outcome for attempt in attempts] == ["handed_back", "succeeded"]
    assert attempts[1].resumed_step > 0 and house.job(run).failures == 0


def test_an_older_worker_of_the_same_contract_is_served(house: House, world: World, code: Path) -> None:
    house.sources = {"gpu-1": code / "same"}
    only(house, "web", "keeper", "gpu-1")
    house.hit()
    run = house.start_run(world, epochs=8)
    house.training(run)
    assert [attempt.worker for attempt in house.check_success(run)] == ["gpu-1"]
    assert not Attempt.objects.exclude(outcome="succeeded").exists()
