"""The database's backend: a restart of Postgres costs a process its connections, and nothing else."""

import threading
from datetime import timedelta
from typing import cast

import psycopg
import pytest
from django.conf import settings
from django.db import OperationalError, connection, connections

from stillhouse.accounts.models import Workspace
from stillhouse.core.locks import held
from stillhouse.core.postgres.base import DatabaseWrapper

IDLE = 12


@pytest.mark.django_db(transaction=True)
def test_the_first_query_after_a_restart_is_answered_however_many_connections_died_idle() -> None:
    """One by one, with pauses that double, twelve would outlast the pool's patience: an error."""
    wrapper = cast(DatabaseWrapper, connections["default"])
    wrapper.ensure_connection()
    pool = wrapper.pool
    idle = [pool.getconn() for _ in range(IDLE)]
    for each in idle:
        pool.putconn(each)
    connection.close()
    _drop_every_connection(str(wrapper.settings_dict["NAME"]))
    assert Workspace.objects.count() >= 0
    connection.close()


@pytest.mark.django_db(transaction=True)
def test_a_process_that_stands_still_does_not_keep_its_lock_for_ever() -> None:
    """Stopped, or its host is gone: its session ends, and what it then does fails."""
    holds, wakes, seen = threading.Event(), threading.Event(), []

    def stand_still() -> None:
        try:
            with held("finish:job_1", at_most=timedelta(milliseconds=300)):
                holds.set()
                wakes.wait(30)
        except OperationalError as error:
            seen.append(error)
        finally:
            connection.close()

    other = threading.Thread(target=stand_still)
    other.start()
    assert holds.wait(10)
    with held("finish:job_1"):
        wakes.set()
        other.join(10)
    assert len(seen) == 1
    with connection.cursor() as cursor:
        cursor.execute("SHOW idle_session_timeout")
        assert cursor.fetchone() == ("0",), "only while the lock is held: a pool's sessions are idle for long"
        cursor.execute("SHOW idle_in_transaction_session_timeout")
        assert cursor.fetchone() == ("2min",), "nor does one that stands still keep rows locked"


def _drop_every_connection(name: str) -> None:
    """As a restart does."""
    url = settings.DATABASE_URL.rpartition("/")[0] + "/" + name
    with psycopg.connect(url, autocommit=True) as killer:
        killed = killer.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchone()
    assert killed and killed[0] >= IDLE
