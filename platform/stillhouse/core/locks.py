"""Advisory locks of Postgres: one at a time, across every process that shares the database."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection


def lock_in_transaction(name: str) -> None:
    """Wait for the lock; it is released when the current transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [name])


@contextmanager
def held(name: str) -> Iterator[None]:
    """Hold the lock for a block that may talk to the object store, so without a transaction around it.

    If this process dies, its database session ends and the lock with it.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [name])
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [name])
