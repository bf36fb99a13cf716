"""The same faults at chosen moments: in the middle of an upload, and while a result is being taken."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
import pytest
from django.conf import settings
from django.db import connection

from stillhouse.jobs.models import Attempt
from stillhouse.training.models import TrainingRun
from tests.chaos.house import LEASE_SECONDS, NAMES, PATIENCE, House
from tests.chaos.test_faults import went_on
from tests.waiting import wait_for
from tests.world import World

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.chaos,
    pytest.mark.usefixtures("stores", "transactional_db"),
]


def database_url() -> str:
    return f"{settings.DATABASE_URL.rpartition('/')[0]}/{connection.settings_dict['NAME']}"


@dataclass
class Gate:
    """Holds every finish of a job up in the web process, as it is while another one is being taken."""

    session: "psycopg.Connection[tuple[object, ...]]"
    lock: str

    def shut(self) -> None:
        self.session.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [self.lock])

    def open(self) -> None:
        self.session.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [self.lock])

    def has_somebody(self) -> bool:
        """Whether a web process has a finish in its hands."""
        query = """SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
            AND (classid::bigint << 32 | objid::bigint) = hashtextextended(%s, 0)"""
        return self.session.execute(query, [self.lock]).fetchone() is not None


@contextmanager
def finish_held_up(run: TrainingRun) -> Iterator[Gate]:
    """Until somebody waits there; then the block runs, and the gate opens."""
    with psycopg.connect(database_url(), autocommit=True) as session:
        gate = Gate(session, f"finish:{run.job_id}")
        gate.shut()
        wait_for(gate.has_somebody, PATIENCE)
        yield gate


def test_a_worker_killed_while_it_uploads_a_checkpoint(house: House, world: World) -> None:
    """The store takes the bytes and does not answer: the worker is certainly in the middle of it."""
    run = house.start_run(world)
    step = house.checkpointed(run)
    with house.store.answering(b""):
        house.training(run, step=step + 50)
        lost = house.job(run).worker
        house.kill(lost)
    attempts = house.check_success(run)
    assert [attempt.outcome for attempt in attempts] == ["lost", "succeeded"]
    went_on(attempts)


def test_a_worker_killed_while_its_result_is_taken(house: House, world: World) -> None:
    """What the platform has in its hands it takes to its end, or the next attempt does; never both."""
    run = house.start_run(world, epochs=8)
    house.training(run)
    with finish_held_up(run):
        house.kill(house.job(run).worker)
    house.check_success(run)


def test_web_killed_while_it_takes_a_result(house: House, world: World) -> None:
    run = house.start_run(world, epochs=8)
    house.training(run)
    with finish_held_up(run):
        house.kill("web")
    house.ensure("web")
    house.check_success(run)


def test_web_stopped_while_it_takes_a_result(house: House, world: World) -> None:
    """Past the lease, so that another attempt has the job when it wakes up and wants to take the first."""
    run = house.start_run(world)
    house.checkpointed(run)
    with finish_held_up(run):
        house.kill("web", number=signal.SIGSTOP)
    lost = Attempt.objects.filter(job=run.job_id, number=1, ended_at__isnull=False)
    wait_for(lost.exists, PATIENCE)
    house.kill("web", number=signal.SIGCONT)
    attempts = house.check_success(run)
    assert [attempt.outcome for attempt in attempts][-1] == "succeeded"


def test_postgres_away_while_it_takes_a_result(house: House, world: World) -> None:
    run = house.start_run(world, epochs=8)
    house.training(run)
    with finish_held_up(run) as gate:
        house.hit()
        with house.database.away():
            gate.open()
            wait_for(lambda: not gate.has_somebody(), PATIENCE)
    house.check_success(run)


def test_everything_of_the_platform_stopped_for_longer_than_the_lease(house: House, world: World) -> None:
    """As when a host is paused and moved: nobody has done anything, and the leases are over."""
    run = house.start_run(world)
    house.checkpointed(run)
    house.kill(*NAMES, number=signal.SIGSTOP)
    house.kill_trainers(signal.SIGSTOP)
    began = Attempt.objects.get(job=run.job_id).started_at
    wait_for(lambda: seconds_since_report(run) > LEASE_SECONDS * 1.5, PATIENCE)
    house.kill_trainers(signal.SIGCONT)
    house.kill(*NAMES, number=signal.SIGCONT)
    attempts = house.check_success(run)
    assert attempts[0].started_at == began and len(attempts) <= 2


def test_a_database_that_only_reads_for_a_while(house: House, world: World) -> None:
    """As after a fail-over to a standby that is not promoted yet: nothing is lost, nobody gives up."""
    run = house.start_run(world)
    house.checkpointed(run)
    house.hit()
    name = connection.settings_dict["NAME"]
    with psycopg.connect(settings.DATABASE_URL, autocommit=True) as admin:
        admin.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        with house.database.away():
            pass
        wait_for(lambda: seconds_since_report(run) > LEASE_SECONDS, PATIENCE)
        admin.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        with house.database.away():
            pass
    assert all(house.processes[name].poll() is None for name in NAMES), "nobody gave up"
    attempts = house.check_success(run)
    assert len(attempts) <= 2


def seconds_since_report(run: TrainingRun) -> float:
    """By the database's clock."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT extract(epoch FROM now() - reported_at) FROM jobs_job WHERE id = %s", [run.job_id]
        )
        return float(cursor.fetchone()[0])
