"""HTTP/1.1 with a limit on headers: `uvicorn --http stillhouse.gateway.protocol:LimitedHttp`.

uvicorn's httptools protocol collects headers without any limit, before an application sees anything of the
request: a client that never ends its headers takes as much memory as it likes.
"""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from stillhouse.gateway.errors import ApiError

MAX_HEAD_BYTES = 64 * 1024
"""Of the request line and all headers."""

_BODY = ApiError(
    431, "headers_too_large", f"Send at most {MAX_HEAD_BYTES // 1024} KiB of request line and headers."
).body()
_ANSWER = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
_ANSWER += b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(_BODY), _BODY)


class LimitedHttp(HttpToolsProtocol):
    """uvicorn's own protocol, which stops reading when the head of a request is too long."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_bytes = 0
        self._in_head = True

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        # Only here, after parsing: what came in one piece with the headers may be the body.
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_ANSWER)
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._in_head = False
        self._head_bytes = 0

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True
