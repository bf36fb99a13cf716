"""The monthly budgets of escalations, kept by Postgres for all gateways together.

Before a remote model is asked, the most that its answer may cost is set aside, if the month has room for it
beside what was spent and what is set aside already. The copy of the request's usage record puts its cost in
the place of that amount, in one statement: whenever a gateway looks or is killed, the budget holds. This is
the one wait for Postgres that a request has, and only where it goes on to wait for a remote model.
"""

import asyncio
import logging

import psycopg

from stillhouse.gateway.config import GatewayConfig
from stillhouse.gateway.snapshot import Connection, Escalation
from stillhouse.gateway.usage import Record

logger = logging.getLogger(__name__)

USED_UP, UNKNOWN = "budget_used_up", "budget_unknown"
# Of a gateway whose machine is gone for good, with the record that would have given it back.
_FORGOTTEN = "DELETE FROM usage_escalationhold WHERE at < now() - interval '1 day'"
# In a statement of its own before the other one looks: what it waits for has to be seen.
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"
_HOLD = """
    INSERT INTO usage_escalationhold (id, workspace_id, alias, amount, at)
    SELECT %(id)s, alias.workspace_id, alias.name, %(amount)s, now()
    FROM publishing_escalation AS escalation JOIN publishing_alias AS alias ON alias.id = escalation.alias_id
    WHERE escalation.enabled AND alias.workspace_id = %(workspace)s AND alias.name = %(alias)s
        AND escalation.monthly_budget >= %(amount)s + (
            SELECT coalesce(sum(hour.cost), 0) FROM usage_usagehour AS hour
            WHERE hour.workspace_id = %(workspace)s AND hour.alias = %(alias)s AND hour.cost > 0
                  AND hour.hour >= date_trunc('month', now(), 'UTC')) + (
            SELECT coalesce(sum(hold.amount), 0) FROM usage_escalationhold AS hold
            WHERE hold.workspace_id = %(workspace)s AND hold.alias = %(alias)s
                  AND hold.at >= date_trunc('month', now(), 'UTC'))"""


class Budgets:
    """One connection, and one question at a time: a remote model takes a thousand times as long."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()

    async def stop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def set_aside(self, record: Record, escalation: Escalation, amount: int) -> str:
        """Why there is no room for `amount`; empty when it is set aside for this request.

        The record's way into the ledger gives it back, whatever becomes of the request.
        """
        try:
            async with asyncio.timeout(self._config.budget_seconds), self._turn:
                return "" if await self._ask(record, amount) else USED_UP
        except (psycopg.Error, OSError, TimeoutError) as error:
            logger.warning("the budget of %s cannot be asked for: %s", escalation.model, type(error).__name__)
            return UNKNOWN

    async def _ask(self, record: Record, amount: int) -> bool:
        terms = {
            "id": record.id,
            "workspace": record.workspace_id,
            "alias": record.alias,
            "amount": amount,
        }
        try:
            connection = self._connection = self._connection or await self._connect()
            async with connection.transaction():
                await connection.execute(_LOCK, [f"{record.workspace_id}/{record.alias}"])
                await connection.execute(_FORGOTTEN)
                return (await connection.execute(_HOLD, terms)).rowcount == 1
        except BaseException:
            await self.stop()  # whatever was under way on it
            raise

    async def _connect(self) -> Connection:
        return await psycopg.AsyncConnection.connect(
            self._config.database_url,
            autocommit=True,
            connect_timeout=max(1, round(self._config.budget_seconds)),
            application_name="stillhouse-gateway-budgets",
            options=f"-c statement_timeout={round(self._config.budget_seconds * 1000)}",
        )
