"""The app's side of a request: reading its body, noticing that it went away, answering."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any, Self

from stillhouse.core.ids import new_id
from stillhouse.gateway.errors import ApiError, Headers
from stillhouse.gateway.usage import Record

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
"""Of ASGI."""

_BODY_REFUSED = (408, 413, 415, 431)
_LINGER_SECONDS = 5.0
_LINGER_BYTES = 256 * 1024 * 1024
_CLIENT_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_UNWATCHED_SECONDS = 0.02
"""An answer that is there by then needs no task that looks whether the app is."""
_MAX_HEADERS = 100
_MAX_HEADER_BYTES = 32 * 1024


class ClientGone(Exception):
    """The app closed the connection: nobody waits for an answer."""


def check_headers(headers: list[tuple[bytes, bytes]], max_body_bytes: int) -> None:
    """Refuse, before the body is read, what its headers already rule out."""
    if (
        len(headers) > _MAX_HEADERS
        or sum(len(name) + len(value) for name, value in headers) > _MAX_HEADER_BYTES
    ):
        raise ApiError(
            431,
            "headers_too_large",
            f"Send at most {_MAX_HEADERS} headers and {_MAX_HEADER_BYTES // 1024} KiB of them.",
        )
    for name, value in headers:
        if name == b"content-length" and value.isdigit() and int(value) > max_body_bytes:
            raise too_large(max_body_bytes)
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise ApiError(
                415, "unsupported_encoding", "Send the body as plain JSON, without Content-Encoding."
            )


def too_large(max_body_bytes: int) -> ApiError:
    return ApiError(
        413,
        "request_too_large",
        f"The body is larger than {max_body_bytes // 1024} KiB, the most this gateway takes. "
        "Send a shorter conversation.",
    )


class Interruption:
    """`async with`: after so many seconds, `due` is called, and may cut short what runs inside: that is
    cancelled, and ends in an error of ours.

    As `asyncio.timeout`, which takes twice as long, and every request has two of these.
    """

    def __init__(self, seconds: float, error: Callable[[], Exception]) -> None:
        self._seconds = seconds
        self._error = error
        self._cut = False

    async def __aenter__(self) -> Self:
        inside = asyncio.current_task()
        if inside is None:
            raise RuntimeError("needs a task to cancel")
        self._inside = inside
        self._timer = inside.get_loop().call_later(self._seconds, self.due)
        return self

    def due(self) -> None:
        self.cut_short()

    def cut_short(self) -> None:
        self._cut = True
        self._inside.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._cut and self._inside.uncancel() == 0 and kind is asyncio.CancelledError:
            raise self._error() from error


class ClientWatch(Interruption):
    """Cuts short what runs inside when the app goes away, and raises ClientGone instead.

    Send the last piece of the answer outside of it: after that, a server reports every client as gone.
    """

    def __init__(self, receive: Receive) -> None:
        super().__init__(_UNWATCHED_SECONDS, ClientGone)
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None

    def due(self) -> None:
        self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.cut_short()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        await super().__aexit__(kind, error, traceback)


class Call:
    """One request of an app and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self._send = send
        self.record = Record(id=new_id("req"), client_id=_client_id(scope["headers"]))
        # The ledger keeps our own id: an app that sends the same one twice would pay for one request only.
        ours = self.record.id.encode()
        self.headers: Headers = [
            (b"x-request-id", self.record.client_id.encode() or ours),
            (b"x-stillhouse-request", ours),
        ]
        """Of the answer, whatever it will be."""
        self.upstream_headers = {"X-Request-Id": self.record.id}
        """Of the request to the engine."""
        self.end_span: Callable[[], None] = lambda: None
        self.booked = False
        """The record is in the ledger."""
        self.status = 0
        """That the app was sent; 0 before the answer began."""

    @property
    def path(self) -> str:
        return str(self.scope["path"])

    async def read_body(self, *, max_bytes: int, seconds: float) -> bytes:
        """The whole body, at most `max_bytes` of it.

        Raises:
            ApiError: 413 as soon as it is too large, 408 when it takes longer than `seconds`.
            ClientGone: the connection was closed before the body was complete.
        """
        pieces: list[bytes] = []
        size = 0

        def too_slow() -> ApiError:
            return ApiError(408, "body_timeout", f"The body did not arrive within {seconds:g} seconds.")

        async with Interruption(seconds, too_slow):
            while True:
                message = await self.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                piece = message.get("body", b"")
                size += len(piece)
                if size > max_bytes:
                    raise too_large(max_bytes)
                pieces.append(piece)
                if not message.get("more_body", False):
                    return b"".join(pieces)

    async def start(self, status: int, headers: Headers) -> None:
        """Status and headers; pieces of the body follow by `send`."""
        await self.send(
            {"type": "http.response.start", "status": status, "headers": [*headers, *self.headers]}
        )
        self.status = status

    async def send(self, message: Message) -> None:
        await self._send(message)

    async def send_json(self, body: object) -> None:
        await self.send_body(200, json.dumps(body, ensure_ascii=False).encode())

    async def send_body(self, status: int, body: bytes, headers: Headers | None = None) -> None:
        """A whole JSON answer."""
        await self.start(status, [*_json_head(body), *(headers or [])])
        await self.send({"type": "http.response.body", "body": body})

    async def send_error(self, error: ApiError) -> None:
        """An error; the connection is closed when the body was refused unread.

        What still comes of that body is thrown away for a moment first: closing at once would reset the
        connection, and the client would see that instead of the sentence.
        """
        body = error.body()
        if error.status not in _BODY_REFUSED:
            await self.send_body(error.status, body, error.headers())
            return
        await self.start(error.status, [*_json_head(body), *error.headers(), (b"connection", b"close")])
        await self.send({"type": "http.response.body", "body": body, "more_body": True})
        await self._discard()
        await self.send({"type": "http.response.body", "body": b""})

    async def _discard(self) -> None:
        left = _LINGER_BYTES
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while left > 0:
                    message = await self.receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
                    left -= len(message.get("body", b""))
        except TimeoutError:
            return


def _client_id(headers: list[tuple[bytes, bytes]]) -> str:
    """The app's own id of the request, where it is one that can be logged and echoed."""
    for name, value in headers:
        if name == b"x-request-id" and _CLIENT_ID.fullmatch(value):
            return value.decode()
    return ""


def _json_head(body: bytes) -> Headers:
    return [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
