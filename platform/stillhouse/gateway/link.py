"""The gateway's link to Postgres: keeps the snapshot fresh, writes the ledger, outlives an outage."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic

import psycopg

from stillhouse.core.notify import GATEWAY
from stillhouse.gateway.config import GatewayConfig
from stillhouse.gateway.ledger import Ledger
from stillhouse.gateway.limits import Limits
from stillhouse.gateway.snapshot import Connection, Snapshot, read_snapshot
from stillhouse.serving.wishes import WANT_VERSION

logger = logging.getLogger(__name__)

_MISS_SECONDS = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
_GATHER_SECONDS = 0.02  # a burst of notifications is one read
_WISH_SECONDS = 1.0
_MOST_WISHES = 1024


class DatabaseLink:
    """Three connections: one listens, one reads, one copies the ledger. No request ever waits for any of
    them, except the first ones to name something unknown."""

    def __init__(self, config: GatewayConfig, ledger: Ledger, limits: Limits) -> None:
        self._config = config
        self._ledger = ledger
        self._limits = limits
        self._tasks: list[asyncio.Task[None]] = []
        self._wake = asyncio.Event()  # set: the next read begins as soon as the one under way ends
        self._next_read: asyncio.Future[None] | None = None
        self._next_miss_read = 0.0
        self._read_ended = asyncio.Event()
        self._wishes: set[str] = set()
        self._wished: dict[str, float] = {}  # version id -> when it was last asked for
        self.snapshot: Snapshot | None = None
        """None until Postgres was reached for the first time."""
        self.connected = False
        """Postgres answered the last read."""
        self.read_at = 0.0
        """time.monotonic() of the last read."""
        self.reads = 0
        """Snapshots read so far."""

    async def start(self) -> None:
        """Begin to follow. Waits a moment for the first snapshot, and starts without it if need be."""
        self._next_read = asyncio.get_running_loop().create_future()
        self._tasks = [
            asyncio.create_task(self._forever("reading", self._follow)),
            asyncio.create_task(self._forever("listening", self._listen)),
            asyncio.create_task(self._forever("copying", self._copy)),
        ]
        with suppress(TimeoutError):
            async with asyncio.timeout(self._config.database_seconds):
                await asyncio.shield(self._next_read)

    async def stop(self) -> None:
        """Stop following and write what the ledger still holds, if Postgres takes it now."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self._ledger.bytes_waiting:
            return
        try:
            async with asyncio.timeout(self._config.database_seconds):
                await self._once(self._ledger.flush)
        except (psycopg.Error, OSError, TimeoutError) as error:
            logger.warning("usage records stay in the spool: %s", type(error).__name__)

    async def catch_up(self) -> None:
        """Wait for a fresh read, because something was named that the snapshot does not know.

        One such read a second serves everybody, however many unknown names come in. In between this returns
        at once: what was published meanwhile has rung by NOTIFY. So it does while Postgres is away.
        """
        if not self.connected or self._next_read is None:
            return
        if not self._wake.is_set():
            if monotonic() < self._next_miss_read:
                return
            self._next_miss_read = monotonic() + _MISS_SECONDS
            self._wake.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._config.database_seconds):
                await asyncio.shield(self._next_read)

    def want(self, version: str) -> None:
        """Have the pools load a version, by id: noted here, written beside the next read. However many
        requests ask for it, it is written once a second."""
        now = monotonic()
        if now - self._wished.get(version, -_WISH_SECONDS) < _WISH_SECONDS:
            return
        if len(self._wished) >= _MOST_WISHES:
            self._wished = {known: at for known, at in self._wished.items() if now - at < _WISH_SECONDS}
        if len(self._wished) < _MOST_WISHES:
            self._wished[version] = now
            self._wishes.add(version)
            self._wake.set()

    async def news(self, deadline: float) -> bool:
        """Wait for the end of a read, also of one under way; False when there is none before `deadline`, a
        time of the event loop."""
        self._read_ended.clear()
        try:
            async with asyncio.timeout_at(deadline):
                await self._read_ended.wait()
        except TimeoutError:
            return False
        return True

    async def _forever(self, what: str, follow: Callable[[Connection], Awaitable[None]]) -> None:
        """Keep doing it. Whatever went wrong, the only answer is a new connection: a gateway that stopped
        following would never hear of a revoked key."""
        pause = _FIRST_PAUSE
        while True:
            began = monotonic()
            try:
                await self._once(follow)
            except (psycopg.Error, OSError, TimeoutError) as error:
                logger.warning("%s: Postgres failed: %s", what, type(error).__name__)
            except Exception:
                logger.exception("%s failed", what)
            pause = _FIRST_PAUSE if monotonic() - began > _LONGEST_PAUSE else min(pause * 2, _LONGEST_PAUSE)
            await asyncio.sleep(pause)

    async def _once(self, follow: Callable[[Connection], Awaitable[None]]) -> None:
        connection = await self._connect()
        try:
            await follow(connection)
        finally:
            await connection.close()  # not the connection's own `async with`: its rollback may wait for ever

    async def _connect(self) -> Connection:
        seconds = max(1, round(self._config.database_seconds))
        return await psycopg.AsyncConnection.connect(
            self._config.database_url,
            autocommit=True,
            connect_timeout=seconds,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            application_name="stillhouse-gateway",
            options=f"-c statement_timeout={seconds * 1000}",
        )

    async def _listen(self, connection: Connection) -> None:
        await connection.execute(f"LISTEN {GATEWAY}")
        self._wake.set()  # whatever was said before we listened
        async for _ in connection.notifies():
            self._wake.set()

    async def _follow(self, connection: Connection) -> None:
        try:
            while True:
                await self._write_wishes(connection)
                await self._read(connection)
                await self._wait()
        finally:
            self.connected = False
            self._release()

    async def _copy(self, connection: Connection) -> None:
        """Apart from reading: after an outage there may be hours of records, and a revocation waits for none
        of them."""
        while True:
            await self._ledger.flush(connection)
            await asyncio.sleep(self._config.copy_seconds)

    async def _write_wishes(self, connection: Connection) -> None:
        while self._wishes:
            async with asyncio.timeout(self._config.database_seconds):
                await connection.execute(WANT_VERSION, [self._wishes.pop()])

    async def _read(self, connection: Connection) -> None:
        self._wake.clear()
        waiting = self._renew()
        copied = Counter(self._ledger.copied)  # committed before this read begins, so it is in its sums
        try:
            async with asyncio.timeout(self._config.database_seconds):
                self.snapshot = await read_snapshot(connection)
            self._limits.settle(copied, {key.id for key in self.snapshot.keys.values()})
            self._ledger.copied -= copied
            self.connected = True
            self.read_at = monotonic()
            self.reads += 1
        finally:
            self._read_ended.set()
            if not waiting.done():
                waiting.set_result(None)

    async def _wait(self) -> None:
        """Until the next read is due: when somebody rings, or in time."""
        await asyncio.sleep(_GATHER_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._config.read_seconds):
                await self._wake.wait()

    def _renew(self) -> asyncio.Future[None]:
        """The future that those wait on who came before the read that begins now."""
        current = self._next_read
        self._next_read = asyncio.get_running_loop().create_future()
        if current is None:
            raise RuntimeError("start() comes first")
        return current

    def _release(self) -> None:
        """Let nobody wait for a read that will not come soon."""
        waiting = self._renew()
        if not waiting.done():
            waiting.set_result(None)
