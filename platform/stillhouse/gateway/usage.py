"""The ledger: one record per request that reached a model, without its content, written in batches."""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from time import perf_counter

import psycopg

from stillhouse.gateway.snapshot import Connection

logger = logging.getLogger(__name__)
_BATCH = 500

_INSERT = """
    INSERT INTO usage_usagerecord (id, workspace_id, caller, model, served, at, status, prompt_tokens,
        completion_tokens, first_token_ms, total_ms, finish_reason, cancelled)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (id) DO NOTHING"""


@dataclass(slots=True)
class Record:
    """One request, filled in as it goes. A UsageRecord row comes of it once it is known what answers."""

    id: str
    workspace_id: str = ""
    caller: str = ""
    model: str = ""
    served: str = ""
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    status: int = 0
    code: str = ""
    """Of the error, for the log."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_ms: float | None = None
    total_ms: float = 0.0
    finish_reason: str = ""
    cancelled: bool = False
    started: float = field(default_factory=perf_counter)

    def elapsed_ms(self) -> float:
        return (perf_counter() - self.started) * 1000

    def log_fields(self) -> dict[str, object]:
        """For the log line of the request."""
        first = self.first_token_ms
        return {
            "request": self.id,
            "workspace": self.workspace_id,
            "caller": self.caller,
            "model": self.model,
            "served": self.served,
            "status": self.status,
            "code": self.code,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "first_token_ms": None if first is None else round(first, 2),
            "total_ms": round(self.total_ms, 2),
            "finish_reason": self.finish_reason,
            "cancelled": self.cancelled,
        }

    def row(self) -> tuple[object, ...]:
        return (
            self.id, self.workspace_id, self.caller[:40], self.model, self.served, self.at, self.status,
            self.prompt_tokens, self.completion_tokens, self.first_token_ms, self.total_ms,
            self.finish_reason[:30], self.cancelled,
        )  # fmt: skip


class Ledger:
    """Records on their way to Postgres. Bounded: when it stays away for long, the oldest are given up."""

    def __init__(self, limit: int) -> None:
        self._waiting: deque[Record] = deque()
        self._limit = limit
        self.lost = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, record: Record) -> None:
        self._waiting.append(record)
        if len(self._waiting) > self._limit:
            self._waiting.popleft()
            self.lost += 1
            if self.lost % 1000 == 1:
                logger.error("usage records lost: %d, because Postgres does not take them", self.lost)

    async def flush(self, connection: Connection) -> None:
        """Write everything that waits. A record leaves the queue once committed; twice is harmless."""
        while self._waiting:
            batch = list(islice(self._waiting, _BATCH))
            await self._write(connection, batch)
            done = {record.id for record in batch}
            while self._waiting and self._waiting[0].id in done:
                self._waiting.popleft()

    async def _write(self, connection: Connection, batch: Sequence[Record]) -> None:
        try:
            async with connection.transaction(), connection.cursor() as cursor:
                await cursor.executemany(_INSERT, [record.row() for record in batch])
        except (psycopg.DataError, psycopg.IntegrityError, UnicodeError) as error:
            if len(batch) == 1:
                self.lost += 1
                logger.error("usage record %s cannot be written: %s", batch[0].id, type(error).__name__)
                return
            for record in batch:  # one bad record must not hold up the others
                await self._write(connection, [record])
