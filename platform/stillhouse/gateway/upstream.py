"""The engines: one bounded pool of connections, the least busy replica first, another when it is away."""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from random import random
from time import monotonic

import aiohttp
from yarl import URL

from stillhouse.gateway.config import GatewayConfig
from stillhouse.gateway.errors import ApiError
from stillhouse.gateway.snapshot import Replica

logger = logging.getLogger(__name__)

_SHUN_SECONDS = 2.0
_TRY_ANOTHER = (404, 503)
"""Before the first byte: the engine has lost the version (it restarted), or is not taking requests."""


@lru_cache(maxsize=1024)
def _engine_url(replica_url: str, endpoint: str) -> URL:
    return URL(f"{replica_url.rstrip('/')}/v1/{endpoint}")


class Upstream:
    """Sends requests to replicas and knows how many each one is answering for this process."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._session: aiohttp.ClientSession | None = None
        self._busy: Counter[int] = Counter()
        self._shunned: dict[int, float] = {}

    async def start(self) -> None:
        config = self._config
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=config.max_engine_connections,
                keepalive_timeout=config.keep_alive_seconds,
                ttl_dns_cache=30,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=config.connect_seconds * 2,
                sock_connect=config.connect_seconds,
                sock_read=config.silence_seconds,
            ),
            headers={
                "User-Agent": "stillhouse",
                "Content-Type": "application/json",
                "Accept-Encoding": "identity",
            },
        )

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def answer(
        self, replicas: Sequence[Replica], endpoint: str, body: bytes, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response of one replica, its body still unread. `headers` go with the request.

        Leaving the context before the body is read closes the connection, which stops the generation.

        Raises:
            ApiError: 503 engine_unreachable when no replica answers, 504 engine_timeout when one stays
            silent.
        """
        replica, response = await self._first_answer(replicas, endpoint, body, headers)
        try:
            async with response:
                yield response
        finally:
            self._release(replica)

    async def _first_answer(
        self, replicas: Sequence[Replica], endpoint: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[Replica, aiohttp.ClientResponse]:
        """Ask one replica after the other while none has answered; the returned one is counted as busy."""
        left = list(replicas)
        may_repeat = True
        while left:
            replica = self._least_busy(left)
            left.remove(replica)
            self._busy[replica.id] += 1
            kept = False
            try:
                response = await self._post(replica, endpoint, body, headers)
                kept = response.status not in _TRY_ANOTHER or not left
                if kept:
                    return replica, response
                response.close()
                logger.warning("replica %d answered %d; trying another", replica.id, response.status)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                self._shun(replica, error)
            except aiohttp.SocketTimeoutError as error:
                raise ApiError(
                    504, "engine_timeout", "The engine did not answer in time. Ask for fewer tokens."
                ) from error
            except aiohttp.ClientConnectionError as error:
                # Dropped: an idle connection that the engine closed just now, or an engine that died. Once
                # more is harmless, as nothing was answered; more would carry a request that kills engines
                # through the pool.
                self._shun(replica, error)
                left = [*left, replica] if may_repeat else []
                may_repeat = False
            finally:
                if not kept:
                    self._release(replica)
        raise ApiError(
            503,
            "engine_unreachable",
            "No engine that serves this model can be reached right now. Try again in a few seconds.",
            retry_after=2,
        )

    async def _post(
        self, replica: Replica, endpoint: str, body: bytes, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("start() comes first")
        return await self._session.post(
            _engine_url(replica.url, endpoint),
            data=body,
            headers=headers,
            allow_redirects=False,
        )

    def _least_busy(self, replicas: Sequence[Replica]) -> Replica:
        """Equals by lot: several gateways that all took the first one would crowd on it."""
        now = monotonic()
        return min(
            replicas,
            key=lambda one: (self._shunned.get(one.id, 0) > now, one.stale, self._busy[one.id], random()),
        )

    def _shun(self, replica: Replica, error: Exception) -> None:
        """Take it last for a moment."""
        self._shunned[replica.id] = monotonic() + _SHUN_SECONDS
        logger.warning("replica %d cannot be reached: %s", replica.id, type(error).__name__)

    def _release(self, replica: Replica) -> None:
        self._busy[replica.id] -= 1
        if not self._busy[replica.id]:
            del self._busy[replica.id]
