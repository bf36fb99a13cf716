"""From the spool to Postgres: batches of records, each once, and their sums by the hour in the same
statement."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic

import psycopg

from stillhouse.gateway import feedback
from stillhouse.gateway.config import GatewayConfig
from stillhouse.gateway.snapshot import Connection
from stillhouse.gateway.spool import Orphan, Spool, bring_to_disk, read_segment
from stillhouse.gateway.usage import Record

logger = logging.getLogger(__name__)
_BATCH, _BATCH_BYTES = 500, 4 * 1024 * 1024
_SYNC_SECONDS = 1.0
_ADOPT_SECONDS = 5.0

_COLUMNS = """id, workspace_id, caller, key, model, alias, served, version, shadow, at, status, prompt_tokens,
    completion_tokens, reasoning_tokens, first_token_ms, total_ms, finish_reason, cancelled, escalation,
    prompt_price, completion_price"""
# Most lines leave out what only an escalation or an exchange that is kept has.
_GIVEN = _COLUMNS.replace(
    """escalation,
    prompt_price, completion_price""",
    """coalesce(escalation, '') AS escalation, coalesce(prompt_price, 0) AS prompt_price,
    coalesce(completion_price, 0) AS completion_price""",
)
# One statement: a record and its share of the hour are there together or not at all, a record that was there
# already adds nothing, and a cost takes the place of what was set aside for it. The order of the groups keeps
# two gateways from waiting for each other.
_COPY = f"""
    WITH sent AS (
        SELECT {_GIVEN}, kept_prompt, kept_answers, kept_days FROM jsonb_to_recordset(%s::jsonb) AS record(
            id text, workspace_id text, caller text, key text, model text, alias text, served text,
            version text, shadow boolean, at timestamptz, status smallint, prompt_tokens integer,
            completion_tokens integer, reasoning_tokens integer, first_token_ms float8, total_ms float8,
            finish_reason text, cancelled boolean, escalation text, prompt_price bigint,
            completion_price bigint, kept_prompt text, kept_answers text, kept_days integer)
    ), fresh AS (
        INSERT INTO usage_usagerecord ({_COLUMNS}, cost)
        SELECT {_COLUMNS}, prompt_tokens * prompt_price + completion_tokens * completion_price FROM sent
        ON CONFLICT (id) DO NOTHING RETURNING *
    ), hours AS (
        INSERT INTO usage_usagehour AS hour (workspace_id, hour, caller, key, alias, served, version, shadow,
            requests, failed, cancelled, prompt_tokens, completion_tokens, reasoning_tokens, total_ms,
            escalated, cost)
        SELECT workspace_id, date_trunc('hour', at, 'UTC'), caller, key, alias, served, version, shadow,
            count(*), count(*) FILTER (WHERE status = 0 OR status >= 400 AND status <> 499),
            count(*) FILTER (WHERE cancelled), sum(prompt_tokens), sum(completion_tokens),
            sum(reasoning_tokens), sum(total_ms), count(*) FILTER (WHERE escalation <> ''), sum(cost)
        FROM fresh GROUP BY 1, 2, 3, 4, 5, 6, 7, 8 ORDER BY 1, 2, 3, 4, 5, 6, 7, 8
        ON CONFLICT ON CONSTRAINT usage_hour_unique DO UPDATE SET
            requests = hour.requests + EXCLUDED.requests,
            failed = hour.failed + EXCLUDED.failed,
            cancelled = hour.cancelled + EXCLUDED.cancelled,
            prompt_tokens = hour.prompt_tokens + EXCLUDED.prompt_tokens,
            completion_tokens = hour.completion_tokens + EXCLUDED.completion_tokens,
            reasoning_tokens = hour.reasoning_tokens + EXCLUDED.reasoning_tokens,
            total_ms = hour.total_ms + EXCLUDED.total_ms,
            escalated = hour.escalated + EXCLUDED.escalated,
            cost = hour.cost + EXCLUDED.cost
    ), kept AS (
        INSERT INTO usage_keptexchange (id, workspace_id, alias, served, prompt, answers, at, expires_at)
        SELECT fresh.id, fresh.workspace_id, fresh.alias, fresh.served, sent.kept_prompt, sent.kept_answers,
            fresh.at, fresh.at + least(sent.kept_days, keeping.days) * interval '1 day'
        FROM fresh JOIN sent ON sent.id = fresh.id
        JOIN publishing_alias AS named ON named.workspace_id = fresh.workspace_id AND named.name = fresh.alias
        JOIN publishing_keeping AS keeping ON keeping.alias_id = named.id
        WHERE sent.kept_prompt IS NOT NULL ON CONFLICT (id) DO NOTHING
    ), given_back AS (
        DELETE FROM usage_escalationhold WHERE id IN (SELECT id FROM sent))
    SELECT key, sum(prompt_tokens + completion_tokens)::bigint FROM fresh
    WHERE key <> '' AND NOT shadow GROUP BY key"""


class Ledger:
    """`begin` when it is known what answers, `end` before the last byte of the answer goes out."""

    def __init__(self, config: GatewayConfig) -> None:
        self._spool = Spool(
            config.spool_dir, max_bytes=config.spool_bytes, max_waiting=config.unspooled_records
        )
        self._room_for_feedback = config.spool_bytes // 2
        self._seconds = config.database_seconds
        self._next_look = 0.0
        self._syncing: asyncio.Task[None] | None = None
        self.refused = 0
        """Records that Postgres does not take, whatever happens."""
        self.copied: Counter[str] = Counter()
        """Tokens by key of this process's records that Postgres has; whoever has counted them takes them
        out."""

    @property
    def lost(self) -> int:
        return self._spool.lost + self.refused

    @property
    def bytes_waiting(self) -> int:
        return self._spool.bytes_waiting

    async def start(self) -> None:
        self._spool.open()
        self._syncing = asyncio.create_task(self._sync_forever())

    async def stop(self) -> None:
        """What Postgres has not taken stays in the spool, for the next gateway on this machine."""
        if self._syncing is not None:
            self._syncing.cancel()
            await asyncio.gather(self._syncing, return_exceptions=True)
            with suppress(OSError):
                if (file := self._spool.take_unsynced()) is not None:
                    bring_to_disk(file)
            self._spool.close()

    def begin(self, record: Record) -> None:
        """From here on the request is in the ledger, even when this process is killed over it."""
        if self._spool.inflight is not None:
            record.guard = self._spool.inflight.take(record.line())

    def end(self, record: Record) -> None:
        if self._spool.failing:
            record.kept = None  # memory has room for counts only
        self._spool.append(record.line())
        if record.guard is not None and self._spool.inflight is not None:
            self._spool.inflight.give(record.guard)
            record.guard = None

    def note(self, line: bytes) -> bool:
        """Spool a line of feedback; False where the disk takes nothing, or half of the spool is waiting.

        Memory has room for counts only, and what apps say must not push usage records off the disk.
        """
        if self._spool.failing or self.bytes_waiting > self._room_for_feedback:
            return False
        self._spool.append(line)
        return True

    def forget(self, record: Record) -> None:
        """It was no request after all."""
        if record.guard is not None and self._spool.inflight is not None:
            self._spool.inflight.give(record.guard)
            record.guard = None

    async def flush(self, connection: Connection) -> None:
        """Copy everything that waits. A segment is removed once all of it is committed; twice is harmless."""
        while waiting := list(self._spool.waiting):
            self.copied.update(await self._copy(connection, waiting))
            for _ in waiting:
                self._spool.waiting.popleft()
        self._spool.seal()
        while path := self._spool.oldest():
            self.copied.update(await self._copy(connection, await asyncio.to_thread(_lines, path)))
            if path == self._spool.oldest():  # it may have been given up meanwhile
                self._spool.remove_oldest()
        await self._adopt(connection)

    async def _adopt(self, connection: Connection) -> None:
        if monotonic() < self._next_look:
            return
        self._next_look = monotonic() + _ADOPT_SECONDS
        orphans = await asyncio.to_thread(lambda: list(self._spool.orphans()))
        try:
            for orphan in orphans:
                await self._replay(connection, orphan)
        finally:
            for orphan in orphans:
                orphan.release()

    async def _replay(self, connection: Connection, orphan: Orphan) -> None:
        lines = await asyncio.to_thread(orphan.lines)
        await self._copy(connection, lines)
        await asyncio.to_thread(orphan.remove)
        logger.warning("usage: %d records of a gateway that is gone were copied", len(lines))

    async def _copy(self, connection: Connection, lines: Sequence[bytes]) -> Counter[str]:
        tokens: Counter[str] = Counter()
        for batch in _batches(lines):
            tokens.update(await self._write(connection, batch))
        return tokens

    async def _write(self, connection: Connection, batch: Sequence[bytes]) -> dict[str, int]:
        """Commit a batch; returns the tokens of what was new, by key."""
        said = [line for line in batch if feedback.is_feedback(line)]
        records = [line for line in batch if not feedback.is_feedback(line)]
        try:
            async with asyncio.timeout(self._seconds), connection.transaction():
                cursor = await connection.execute(_COPY, [_list(records)])
                tokens: dict[str, int] = dict(await cursor.fetchall())
                if said:  # after the records that it may be about
                    await connection.execute(feedback.COPY, [_list(said)])
                return tokens
        except (psycopg.DataError, psycopg.IntegrityError, psycopg.NotSupportedError) as error:
            if len(batch) == 1:
                self.refused += 1
                logger.error("a usage record cannot be written: %s", type(error).__name__)
                return {}
        one_by_one: Counter[str] = Counter()
        for line in batch:  # one bad record must not hold up the others
            one_by_one.update(await self._write(connection, [line]))
        return one_by_one

    async def _sync_forever(self) -> None:
        while True:
            await asyncio.sleep(_SYNC_SECONDS)
            if (file := self._spool.take_unsynced()) is not None:
                try:
                    await asyncio.to_thread(bring_to_disk, file)
                except OSError as error:
                    logger.error("usage cannot be brought to the disk: %s", error)


def _lines(path: Path) -> list[bytes]:
    return list(read_segment(path))


def _list(lines: Sequence[bytes]) -> str:
    return f"[{b','.join(lines).decode()}]"


def _batches(lines: Sequence[bytes]) -> Iterator[list[bytes]]:
    """At most _BATCH lines each, and about _BATCH_BYTES: lines with a kept exchange are long."""
    batch: list[bytes] = []
    size = 0
    for line in lines:
        if batch and (len(batch) >= _BATCH or size + len(line) > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += len(line)
    if batch:
        yield batch
