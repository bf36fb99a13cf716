"""The agents' doorbell: POST /worker/v1/pools/<pool>/wait, answered when something changed for the pool.

It says nothing of what changed: an agent that hears it syncs at once instead of within a second, and one
that does not hear it syncs all the same. Raw ASGI, because a call that waits must not hold one of Django's
threads.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import psycopg
from pydantic import ValidationError

from stillhouse.core.notify import POOLS
from stillhouse.core.secrets import bearer_token, same
from workers.contract import PoolWait, Refusal

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_PREFIX, _SUFFIX = "/worker/v1/pools/", "/wait"
_MAX_BODY_BYTES = 1024
_MAX_WAITING = 1024
_CONNECT_SECONDS, _PAUSE_SECONDS = 5, 2.0


class Bell:
    """One process's waiting agents, and the connection to Postgres that listens for them."""

    def __init__(self, database_url: str, token: str) -> None:
        self._database_url = database_url
        self._token = token
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._listening: asyncio.Task[None] | None = None

    @staticmethod
    def serves(path: str) -> bool:
        return path.startswith(_PREFIX) and path.endswith(_SUFFIX)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers 204, whether it rang or the time is over."""
        if scope["method"] != "POST":
            await _refuse(send, 405, "bad_request", "This address takes POST only.")
            return
        if not same(_bearer(scope["headers"]), self._token):
            await _refuse(send, 401, "bad_worker_token", "The bearer token is missing or wrong.")
            return
        try:
            wish = PoolWait.model_validate_json(await _body(receive))
        except ValidationError as error:
            what = error.errors(include_input=False, include_url=False)[0]["msg"]
            await _refuse(send, 400, "bad_request", f"PoolWait: {what}")
            return
        pool = str(scope["path"]).removeprefix(_PREFIX).removesuffix(_SUFFIX)
        await self._wait(pool, wish.seconds, receive)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def stop(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)

    async def _wait(self, pool: str, seconds: float, receive: Receive) -> None:
        """Until it rings, the time is over, or the agent is gone."""
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen())
        if sum(map(len, self._waiting.values())) >= _MAX_WAITING:
            await asyncio.sleep(seconds)
            return
        rung = asyncio.Event()
        self._waiting[pool].add(rung)
        first = [asyncio.ensure_future(rung.wait()), asyncio.ensure_future(_gone(receive))]
        try:
            await asyncio.wait(first, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in first:
                one.cancel()
            self._waiting[pool].discard(rung)
            if not self._waiting[pool]:
                del self._waiting[pool]

    async def _listen(self) -> None:
        """For as long as the process lives; without Postgres nothing rings, and agents poll as ever."""
        while True:
            try:
                await self._ring_on_news()
            except (psycopg.Error, OSError) as error:
                logger.warning("the agents' doorbell: Postgres failed: %s", type(error).__name__)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _ring_on_news(self) -> None:
        listener = await psycopg.AsyncConnection.connect(
            self._database_url,
            autocommit=True,
            connect_timeout=_CONNECT_SECONDS,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            application_name="stillhouse-bell",
        )
        try:
            await listener.execute(f"LISTEN {POOLS}")
            async for news in listener.notifies():
                for rung in self._waiting.get(news.payload, ()):
                    rung.set()
        finally:
            await listener.close()


def _bearer(headers: list[tuple[bytes, bytes]]) -> str:
    return bearer_token(dict(headers).get(b"authorization", b"").decode("latin-1"))


async def _body(receive: Receive) -> bytes:
    """What was sent; no more than a little over the limit, which then is no message."""
    body, more = b"", True
    while more and len(body) <= _MAX_BODY_BYTES:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body if len(body) <= _MAX_BODY_BYTES else b""


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse(send: Send, status: int, code: str, message: str) -> None:
    body = Refusal.model_validate({"code": code, "message": message}).model_dump_json().encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
