"""The database's backend: a restart of Postgres costs a process its connections, and nothing else."""

from typing import cast

import psycopg
import pytest
from django.conf import settings
from django.db import connection, connections

from stillhouse.accounts.models import Workspace
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


def _drop_every_connection(name: str) -> None:
    """As a restart does."""
    url = settings.DATABASE_URL.rpartition("/")[0] + "/" + name
    with psycopg.connect(url, autocommit=True) as killer:
        killed = killer.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchone()
    assert killed and killed[0] >= IDLE
