"""A TCP relay to a real Postgres that can be cut: connections break, and new ones get nowhere."""

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Self
from urllib.parse import urlsplit


class Cable:
    """`with Cable(database_url) as cable`: `cable.url` is the same database, through the relay."""

    def __init__(self, database_url: str) -> None:
        self._target = urlsplit(database_url)
        self._whole = True
        self._writers: set[asyncio.StreamWriter] = set()
        self._relays: list[asyncio.Future[Any]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="cable")

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._start())
        at = self._target.netloc.replace(f":{self._target.port}", f":{self._port}")
        self.url = self._target._replace(netloc=at).geturl()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    def cut(self) -> None:
        self._whole = False
        self._run(self._close())

    def mend(self) -> None:
        self._whole = True

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    async def _start(self) -> None:
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        self._server = server

    async def _close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _stop(self) -> None:
        self._server.close()
        await asyncio.gather(*self._relays, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._whole:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        self._writers |= {writer, far_writer}
        both = asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        self._relays.append(both)
        await both


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
