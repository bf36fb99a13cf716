"""Advisory locks of Postgres: one at a time, across every process that shares the database."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from django.db import connection

AT_MOST = timedelta(hours=1)


def lock_in_transaction(name: str) -> None:
    """Wait for the lock; it is released when the current transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [name])


@contextmanager
def held(name: str, *, at_most: timedelta = AT_MOST) -> Iterator[None]:
    """Hold the lock for a block that may talk to the object store, so without a transaction around it.

    If this process dies, its database session ends and the lock with it. One that stands still keeps its
    session: Postgres ends that when it has asked nothing for `at_most`, and the block fails.
    """
    _ask("pg_advisory_lock", name, at_most)
    try:
        yield
    finally:
        _ask("pg_advisory_unlock", name, timedelta(0))


def _ask(function: str, name: str, idle: timedelta) -> None:
    """Lock or unlock; from then on the session ends when it is idle for so long, and never for zero, which is
    what every other session of the pool has."""
    milliseconds = f"{idle.total_seconds() * 1000:.0f}"
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {function}(hashtextextended(%s, 0)), set_config('idle_session_timeout', %s, false)",
            [name, milliseconds],
        )
