"""An engine's bytes on their way: read whole, or passed on piece by piece."""

import logging

import aiohttp

from stillhouse.gateway.answers import StreamedAnswer, interrupted
from stillhouse.gateway.connection import Call
from stillhouse.gateway.errors import ApiError, Headers

logger = logging.getLogger(__name__)

STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx in front would collect the chunks otherwise
]


async def read_whole(response: aiohttp.ClientResponse) -> bytes:
    """The whole body; raises ApiError 502 where it breaks off."""
    try:
        return await response.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise interrupted() from error


async def pass_on(response: aiohttp.ClientResponse, answer: StreamedAnswer, call: Call) -> bytes:
    """Send everything but the end of the stream, which is returned: an error where the engine broke off."""
    try:
        async for piece in response.content.iter_any():
            if out := answer.feed(piece):
                await call.send({"type": "http.response.body", "body": out, "more_body": True})
        if answer.ended:
            return answer.end()
    except (aiohttp.ClientError, TimeoutError, ApiError) as error:
        logger.warning("request %s was cut off by the engine: %s", call.record.id, type(error).__name__)
    call.record.code = interrupted().code
    return answer.broken(interrupted())
