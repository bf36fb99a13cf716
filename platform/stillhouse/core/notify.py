"""Postgres NOTIFY: tells listeners that something changed, at the moment the change is committed."""

from django.db import connection

JOBS = "stillhouse_jobs"
"""Payload: id of the job that changed."""
OUTBOX = "stillhouse_outbox"
"""A doorbell waits; payload empty."""
GATEWAY = "stillhouse_gateway"
"""What apps may call, or where it is served, changed; payload empty."""

POOLS = "stillhouse_pools"
"""What should be loaded somewhere changed. Payload: name of the pool."""


def notify(channel: str, payload: str = "") -> None:
    """Queue a notification in the current transaction; it goes out on commit and is dropped on rollback."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, %s)", [channel, payload])
