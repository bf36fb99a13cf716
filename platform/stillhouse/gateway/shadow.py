"""Copies of requests for a version that is tried out: its answers are thrown away and only counted."""

import asyncio
import logging
from collections.abc import Callable

import aiohttp

from stillhouse.core.ids import new_id
from stillhouse.gateway.answers import WholeAnswer, engine_error
from stillhouse.gateway.errors import ApiError
from stillhouse.gateway.requests import InferenceRequest
from stillhouse.gateway.routing import Target
from stillhouse.gateway.thinking import for_engine
from stillhouse.gateway.upstream import Upstream
from stillhouse.gateway.usage import Record

logger = logging.getLogger(__name__)


class Shadows:
    """At most `limit` copies at a time; beyond that requests are not copied, so that no app waits for one."""

    def __init__(self, upstream: Upstream, begin: Callable[[Record], None], end: Callable[[Record], None]):
        self._upstream = upstream
        self._begin, self._end = begin, end
        self._running: set[asyncio.Task[None]] = set()
        self.dropped = 0
        """Copies not made, for want of room."""

    def send(self, request: InferenceRequest, target: Target, original: Record, *, limit: int) -> None:
        """Send a copy to the target, beside the request."""
        if len(self._running) >= limit:
            self.dropped += 1
            return
        record = Record(
            id=new_id("req"),
            workspace_id=original.workspace_id,
            caller=original.caller,
            key=original.key,
            model=original.model,
            alias=target.alias,
            served=target.name,
            version=target.version,
            shadow=True,
        )
        task = asyncio.create_task(self._ask(request.copy(), target, record))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def stop(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _ask(self, request: InferenceRequest, target: Target, record: Record) -> None:
        self._begin(record)
        try:
            body = for_engine(request, target)
            headers = {"X-Request-Id": record.id}
            async with self._upstream.answer(target.replicas, request.endpoint, body, headers) as response:
                raw = await response.read()
                if response.status != 200:
                    raise engine_error(response.status, raw)
            WholeAnswer(request, target, record).rewrite(raw)
            record.status = 200
        except ApiError as error:
            record.status, record.code = error.status, error.code
        except (aiohttp.ClientError, TimeoutError):
            record.status, record.code = 502, "engine_interrupted"
        except asyncio.CancelledError:
            record.status, record.cancelled = 499, True
            raise
        except Exception:
            logger.exception("shadow request %s failed", record.id)
            record.status = 500
        finally:
            record.total_ms = record.elapsed_ms()
            self._end(record)
