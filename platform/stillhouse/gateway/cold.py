"""Requests for versions that no replica has loaded: they are asked for, and the request waits a moment.

A pool keeps what is used; the rest is loaded on its next request, which takes a second or two. An app that
waits for it here sees a slow answer, not an error.
"""

import asyncio
from collections.abc import Callable

from stillhouse.gateway.config import GatewayConfig
from stillhouse.gateway.link import DatabaseLink
from stillhouse.gateway.routing import Cold, Target


class ColdVersions:
    """The waiting requests of one process, so many at a time; more are told at once when to come back."""

    def __init__(self, link: DatabaseLink, config: GatewayConfig) -> None:
        self._link = link
        self._seconds, self._most = config.cold_seconds, config.max_cold_requests
        self.waiting = 0

    async def wait(self, resolve: Callable[[], Target]) -> Target:
        """The target as soon as `resolve` finds one. Raises what it raises: Cold once the time is over."""
        deadline = asyncio.get_running_loop().time() + self._seconds
        self.waiting += 1
        try:
            while True:
                try:
                    return resolve()
                except Cold as cold:
                    self._link.want(cold.version)
                    if self.waiting > self._most or not await self._link.news(deadline):
                        raise
        finally:
            self.waiting -= 1
