"""Somebody else's models: an OpenAI-compatible service outside, asked with a key of the workspace's own."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from stillhouse.core.sealing import CannotOpen, unseal
from stillhouse.gateway.config import GatewayConfig
from stillhouse.gateway.errors import ApiError
from stillhouse.gateway.fastjson import encode
from stillhouse.gateway.requests import InferenceRequest
from stillhouse.gateway.snapshot import Escalation
from stillhouse.publishing.destinations import is_allowed

logger = logging.getLogger(__name__)

_SEALED_FOR = "escalation"  # as in publishing.escalation.CREDENTIAL
_MAX_ANSWER_BYTES = 16 * 1024 * 1024
_NO_KEY = "-"
# OpenAI's own fields. Token ids mean something else to another model, engine options nothing, and `user` is
# the app's customer, who is nobody's business outside.
_FIELDS = (
    "messages",
    "n",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "seed",
    "stop",
    "response_format",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
)


class RemoteFailed(ApiError):
    """The remote model gave no answer; the message is for our log and ledger, not for the app."""

    def __init__(self, code: str) -> None:
        super().__init__(502, code, "The remote model did not answer.")


class Remote:
    """One bounded pool of connections to all remote services. Redirects are not followed: they would carry a
    prompt past the list of destinations."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        config = self._config
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=config.max_remote_connections, ttl_dns_cache=30),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=config.remote_seconds * 5,
                sock_connect=config.connect_seconds,
                sock_read=config.remote_seconds,
            ),
            headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
            trust_env=False,
        )

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()

    def most_tokens(self, request: InferenceRequest) -> int:
        """Most tokens that an answer may have, all choices together."""
        asked = request.body.get("max_completion_tokens") or request.body.get("max_tokens")
        most = self._config.max_remote_tokens
        return min(asked or most, most) * (request.body.get("n") or 1)

    def is_allowed(self, escalation: Escalation) -> bool:
        """Whether prompts may go there. Asked again here: the list may have shrunk since a lead chose it."""
        return is_allowed(escalation.url, self._config.destinations)

    def body(self, request: InferenceRequest, escalation: Escalation) -> bytes:
        """What is sent: the model's name, the known fields, and a bound on the answer."""
        body: dict[str, Any] = {name: request.body[name] for name in _FIELDS if name in request.body}
        limit = "max_tokens" if "max_tokens" in body else "max_completion_tokens"
        body[limit] = min(body.get(limit) or self._config.max_remote_tokens, self._config.max_remote_tokens)
        body["model"] = escalation.model
        if request.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return encode(body)

    @asynccontextmanager
    async def answer(self, escalation: Escalation, body: bytes) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response with status 200, its body still unread.

        Raises:
            RemoteFailed: there is none: no connection, a refusal, a credential that cannot be opened.
        """
        if self._session is None:
            raise RuntimeError("start() comes first")
        try:
            headers = _authorization(escalation)
            async with self._session.post(
                f"{escalation.url}/chat/completions", data=body, headers=headers, allow_redirects=False
            ) as response:
                if response.status != 200:
                    logger.warning("the remote model of %s answered %d", escalation.model, response.status)
                    raise RemoteFailed(f"remote_{response.status}")
                yield response
        except CannotOpen as error:
            logger.error("the credential of an escalation cannot be opened: SECRET_KEY has changed")
            raise RemoteFailed("remote_credential") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            logger.warning("the remote model cannot be reached: %s", type(error).__name__)
            raise RemoteFailed("remote_unreachable") from error


def _authorization(escalation: Escalation) -> dict[str, str]:
    secret = unseal(_SEALED_FOR, escalation.credential)
    return {} if secret == _NO_KEY else {"Authorization": f"Bearer {secret}"}


async def read_bounded(response: aiohttp.ClientResponse) -> bytes:
    """A whole answer; raises RemoteFailed where it is longer than any answer should be."""
    raw = await response.content.read(_MAX_ANSWER_BYTES + 1)
    pieces = [raw]
    while raw and sum(map(len, pieces)) <= _MAX_ANSWER_BYTES:
        raw = await response.content.read(_MAX_ANSWER_BYTES)
        pieces.append(raw)
    if sum(map(len, pieces)) > _MAX_ANSWER_BYTES:
        raise RemoteFailed("remote_too_long")
    return b"".join(pieces)
