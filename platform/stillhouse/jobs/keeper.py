"""The keeper's loop: rings for queued jobs, takes back lost ones, and tidies up.

All it knows is in the database, so it may be killed at any moment, and a second keeper waits behind an
advisory lock. One that stands still (stopped, its host gone, a chore that hangs) asks Postgres nothing any
more: its session ends, the lock with it, and the second one takes over. What it does when it wakes up before
it has noticed does no harm: no chore needs to be alone.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import psycopg
from django.conf import settings
from django.db import DatabaseError, InterfaceError, close_old_connections, connection
from django.utils.module_loading import import_string
from minio.error import MinioException
from psycopg.conninfo import make_conninfo
from urllib3.exceptions import HTTPError

from stillhouse.core.blobs import sweep_staging
from stillhouse.core.notify import OUTBOX
from stillhouse.jobs.actions import reap_lost_leases
from stillhouse.jobs.checkpoints import remove_dropped_checkpoints, remove_orphans
from stillhouse.jobs.outbox import forget_old_doorbells, relay_outbox, ring_stale_doorbells

log = logging.getLogger(__name__)

LOCK = "stillhouse:keeper"
WAKE_SECONDS = 1.0
"""Longest pause between two looks at the outbox; a notification ends it at once."""
RETRY_SECONDS = 1.0
STANDSTILL = "30s"
"""How long a keeper may take for one chore; then it counts as standing still."""
STAGING_KEPT_FOR = timedelta(days=7)


@dataclass
class Chore:
    """Something done every so often; put off to the next time while the object store is away."""

    name: str
    every_seconds: float
    do: Callable[[], int]
    due: float = field(default=0.0)
    """time.monotonic() from which it is due."""

    def run_if_due(self) -> bool:
        """Whether it was due."""
        if time.monotonic() < self.due:
            return False
        self.due = time.monotonic() + self.every_seconds
        try:
            done = self.do()
        except (MinioException, HTTPError, OSError) as error:
            log.warning("%s: put off, the object store is away (%s)", self.name, type(error).__name__)
            return True
        if done:
            log.info("%s: %d", self.name, done)
        return True


def chores() -> list[Chore]:
    return [
        Chore("doorbells rung", 0, relay_outbox),
        Chore("lost jobs taken back", 2, reap_lost_leases),
        Chore("stale doorbells put back", 5, ring_stale_doorbells),
        Chore("old doorbells forgotten", 3600, forget_old_doorbells),
        Chore("staging objects removed", 3600, lambda: sweep_staging(STAGING_KEPT_FOR)),
        Chore("parts of checkpoints removed", 3600, remove_orphans),
        Chore("checkpoints removed", 10, remove_dropped_checkpoints),
        *(Chore(name, seconds, import_string(path)) for name, seconds, path in settings.KEEPER_CHORES),
    ]


def keep_going(stop: threading.Event) -> None:
    """Run until `stop` is set, whatever becomes of Postgres meanwhile."""
    todo = chores()
    line = make_conninfo(settings.DATABASE_URL, **settings.DATABASE_LINE)
    while not stop.is_set():
        try:
            with psycopg.connect(line, autocommit=True) as listener:
                listener.execute("SELECT set_config('idle_session_timeout', %s, false)", [STANDSTILL])
                _wait_for_turn(listener, stop)
                _listen(listener, stop, todo)
        except (psycopg.Error, DatabaseError, InterfaceError) as error:
            # Away, or it only reads: as a standby does until it is promoted.
            log.warning(
                "the database does not do it (%s); trying again", type(error.__cause__ or error).__name__
            )
            connection.close()
            stop.wait(RETRY_SECONDS)


def _wait_for_turn(listener: "psycopg.Connection[tuple[object, ...]]", stop: threading.Event) -> None:
    """Take the keeper's lock: it goes when this session does, and the next keeper takes over."""
    said = False
    while not stop.is_set():
        row = listener.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [LOCK]).fetchone()
        if row and row[0]:
            log.info("keeping")
            return
        if not said:
            log.info("another keeper is at work; standing by")
            said = True
        stop.wait(WAKE_SECONDS)


def _listen(
    listener: "psycopg.Connection[tuple[object, ...]]", stop: threading.Event, todo: list[Chore]
) -> None:
    listener.execute(f"LISTEN {OUTBOX}")
    while not stop.is_set():
        close_old_connections()
        for chore in todo:
            if chore.run_if_due():
                listener.execute("SELECT 1")  # we are alive, and still have the lock
        for _ in listener.notifies(timeout=WAKE_SECONDS, stop_after=1):
            pass
