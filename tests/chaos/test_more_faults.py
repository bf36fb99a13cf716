"""Faults of the machine a worker runs on, and of servers that answer wrongly. Promises as in test_faults."""

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from django.conf import settings

from stillhouse.embedded import services
from stillhouse.jobs.models import Attempt, Outbox
from tests.chaos.house import HANG_SECONDS, LEASE_SECONDS, NAMES, PATIENCE, House
from tests.chaos.test_faults import forget_every_doorbell, rode_out, went_on
from tests.waiting import wait_for
from tests.world import World

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.chaos,
    pytest.mark.usefixtures("stores", "transactional_db"),
]
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: int = 32) -> Iterator[Path]:
    """A small file system in the place of this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a file system of its own takes the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def small_disk_of_postgres(house: House) -> Iterator[Path]:
    """Postgres with all its files on a small disk of their own; afterwards as it was before."""
    if house.servers is None:
        pytest.skip("somebody else's servers stay where they are")
    data = house.servers.home.path / "postgres"
    kept = data.with_name("postgres.kept")
    house.cut_power()
    data.rename(kept)
    try:
        with small_disk(data, 256):
            subprocess.run(["cp", "-a", f"{kept}/.", str(data)], check=True)
            house.power_again()
            try:
                yield data
            finally:
                house.cut_power()
    finally:
        data.rmdir()
        kept.rename(data)
        house.power_again()


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))


def test_a_disk_that_fills_up_during_a_checkpoint(house: House, world: World) -> None:
    house.kill("gpu-2")
    with small_disk(house.folder / "gpu-1" / "jobs") as disk:
        run = house.start_run(world)
        house.checkpointed(run)
        house.hit()
        fill(disk / "filler")
        first = Attempt.objects.filter(job=run.job_id, number=1, ended_at__isnull=False)
        wait_for(first.exists, PATIENCE)
        (disk / "filler").unlink()
        attempts = house.check_success(run)
    assert (attempts[0].outcome, attempts[0].code) == ("failed", "disk_full")
    assert "disk is full" in attempts[0].message.lower()
    went_on(attempts)


def test_the_disk_of_postgres_is_full(house: House, world: World) -> None:
    """At first it answers, and takes no more than it has room for; then it cannot write its log, and ends.
    With room again, and started again as the supervisor or the container's restart do, everything goes on."""
    with small_disk_of_postgres(house) as disk:
        run = house.start_run(world, epochs=100, rows=80)
        house.checkpointed(run)
        with house.slow_trainers():
            house.hit_now()
            fill(disk / "filler")
            time.sleep(LEASE_SECONDS * 1.5)
            job = house.job(run)
            assert (job.state, job.attempt) == ("running", 1), "its lease takes no room, its points wait"
            write_log_until_it_ends(house)
            (disk / "filler").unlink()
            assert all(house.processes[name].poll() is None for name in NAMES), "nobody gave up"
            house.power_again()
        attempts = house.check_success(run)
        assert len(attempts) <= 2


def write_log_until_it_ends(house: House) -> None:
    assert house.servers is not None
    with contextlib.suppress(psycopg.Error), services.connect_as_admin(house.servers.home) as admin:
        while True:
            admin.execute("SELECT pg_logical_emit_message(false, 'chaos', repeat('x', 1000000))")
    wait_for(lambda: house.servers is not None and house.servers.ended(), PATIENCE)


def test_a_worker_whose_clock_is_two_hours_off(house: House, world: World) -> None:
    house.kill("gpu-1", "gpu-2")
    house.different = {"PYTHONPATH": str(Path(__file__).parent / "clock")}
    house.ensure()
    run = house.start_run(world)
    house.checkpointed(run)
    house.kill(house.job(run).worker)
    attempts = house.check_success(run)
    assert [attempt.outcome for attempt in attempts] == ["lost", "succeeded"]
    went_on(attempts)
    now = time.time()
    assert all(abs(attempt.started_at.timestamp() - now) < 1800 for attempt in attempts), (
        "the database's time"
    )


def test_a_trainer_that_gets_no_more_memory(house: House, world: World) -> None:
    run = house.start_run(world)
    house.training(run)
    house.hit()
    [child] = house.children()
    mapped = int(Path(f"/proc/{child}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(child, resource.RLIMIT_AS, (mapped // 2, mapped // 2))
    house.ended(run)
    first = Attempt.objects.get(job=run.job_id, number=1)
    if first.outcome == "succeeded":
        pytest.skip("this trainer had all its memory already: nothing was refused to it")
    # Where torch says that it was memory, the person is told how to need less, and it is for them to do so;
    # oneDNN does not say, and the run is tried again.
    assert first.outcome == "failed" and first.code in ("out_of_memory", "internal_error"), first.code
    tried_again = Attempt.objects.filter(job=run.job_id).count() > 1
    house.check(run, "succeeded" if tried_again else "failed")
    assert first.message and (tried_again or first.code == "out_of_memory")


def test_a_trainer_that_hangs_without_a_word(house: House, world: World) -> None:
    run = house.start_run(world)
    house.checkpointed(run)
    house.kill_trainers(signal.SIGSTOP)
    attempts = house.check_success(run)
    assert (attempts[0].outcome, attempts[0].code) == ("failed", "no_progress")
    assert f"said nothing for {HANG_SECONDS} s" in attempts[0].message
    went_on(attempts)


def test_a_broker_that_forgets_every_doorbell(house: House, world: World) -> None:
    house.kill("gpu-1", "gpu-2")
    run = house.start_run(world, epochs=4)
    wait_for(Outbox.objects.filter(job=run.job_id, sent_at__isnull=False).exists, PATIENCE)
    forget_every_doorbell()
    house.ensure()
    assert len(house.check_success(run)) == 1


def test_a_broker_that_takes_nothing_more(house: House, world: World) -> None:
    """Its memory is used up, or the disk of its log: it answers, and refuses what it would have to keep."""
    run = house.start_run(world)
    house.training(run)
    house.hit()
    with redis.Redis.from_url(settings.BROKER_URL) as broker:
        broker.config_set("maxmemory", 1)
        try:
            assert len(house.check_success(run)) == 1
            following = house.start_run(world, epochs=4, data_name="More clauses")
            time.sleep(5)
            assert house.job(following).state == "queued"
        finally:
            broker.config_set("maxmemory", 0)
    house.ensure()  # what a supervisor does for a worker that met such a broker at its start
    assert len(house.check_success(following)) == 1


@pytest.mark.parametrize("answer", [BUSY, b""], ids=["errors", "silence"])
def test_a_store_that_gives_only(house: House, world: World, answer: bytes) -> None:
    rode_out(house, world, house.store.answering(answer), seconds=6)


def test_the_store_away_at_the_finish(house: House, world: World) -> None:
    run = house.start_run(world, epochs=8)
    house.training(run)
    house.hit()
    with house.store.away():
        wait_for(lambda: house.job(run).phase == "uploading" or house.job(run).attempt > 1, PATIENCE)
        time.sleep(2)
    assert len(house.check_success(run)) == 1


def test_the_store_away_for_a_minute_at_the_finish(house: House, world: World) -> None:
    """The work is done: a worker waits with it."""
    run = house.start_run(world, epochs=8)
    house.training(run)
    house.hit()
    with house.store.away():
        wait_for(lambda: house.job(run).phase == "uploading", PATIENCE)
        time.sleep(60)
    assert len(house.check_success(run)) == 1


def test_a_trainer_stopped_for_a_moment_only(house: House, world: World) -> None:
    """Shorter than any limit: nobody is to notice."""
    run = house.start_run(world)
    house.training(run)
    house.kill_trainers(signal.SIGSTOP)
    time.sleep(3)
    for child in house.children():
        os.kill(child, signal.SIGCONT)
    assert len(house.check_success(run)) == 1
