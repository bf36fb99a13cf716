"""The backend itself; `ENGINE = "stillhouse.core.postgres"`.

psycopg_pool's own check tries the idle connections one by one, with a pause after each that doubles: after
a restart of Postgres a pool of sixteen would answer nothing but errors for longer than a request waits. One
dead connection says enough about the others.
"""

from typing import Any

from django.db.backends.postgresql import base
from psycopg import OperationalError
from psycopg_pool import ConnectionPool


class DatabaseWrapper(base.DatabaseWrapper):
    """The same, with another check."""

    @property
    def pool(self) -> Any:
        pool = super().pool
        if pool is not None:
            pool._check = throw_all_away_when_one_is_dead  # Django leaves no other way to name one
        return pool


def throw_all_away_when_one_is_dead(connection: Any) -> None:
    """Raises what psycopg_pool's check raises; the pool has by then given up its other idle connections."""
    try:
        ConnectionPool.check_connection(connection)
    except OperationalError:
        connection._pool.drain()
        raise
