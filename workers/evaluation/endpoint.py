"""One OpenAI-compatible endpoint: asks for chat answers and knows what is worth asking again."""

import asyncio
import time
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workers.contract import Sureness, sureness
from workers.evaluation.errors import EvaluationError

TIMEOUT = httpx.Timeout(600.0, connect=10.0, pool=None)
"""A whole answer, not streamed, may take minutes on a slow engine; a connection may not."""
TRIES = 5
LONGEST_PAUSE = 10.0
GATEWAY_HEADER = "x-stillhouse-version"
"""On every answer of our own gateway, which always sets reasoning apart."""
REFUSED = "refused"
"""Finish reason of a row whose prompt the endpoint does not take (too long, for one)."""


@dataclass(frozen=True)
class Answer:
    content: str
    reasoning: str | None
    is_split: bool
    """The endpoint has set reasoning apart; otherwise a think block is still in `content`."""
    finish_reason: str
    completion_tokens: int
    sure: Sureness = Sureness(None, None, 0)  # noqa: RUF009 - it is frozen


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore")
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _LogProbs(BaseModel):
    model_config = ConfigDict(extra="ignore")
    content: list[dict[str, Any]] | None = None


class _Choice(BaseModel):
    model_config = ConfigDict(extra="ignore")
    message: _Message
    finish_reason: str | None = None
    logprobs: _LogProbs | None = None


class _Usage(BaseModel):
    model_config = ConfigDict(extra="ignore")
    completion_tokens: int = 0


class _Completion(BaseModel):
    model_config = ConfigDict(extra="ignore")
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage = _Usage()


class _Busy(Exception):
    """Worth asking again after `seconds`."""

    def __init__(self, reason: str, seconds: float | None = None) -> None:
        super().__init__(reason)
        self.seconds = seconds


class Endpoint:
    """Use as an async context manager.

    Answers are deterministic as far as the engine allows: temperature 0, a seed.
    """

    def __init__(self, url: str, api_key: str, *, concurrency: int, max_tokens: int) -> None:
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._max_tokens = max_tokens
        self._logprobs = True
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.AsyncClient(timeout=TIMEOUT, limits=limits, headers=headers)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def wait_until_ready(self, model: str, seconds: float) -> None:
        """Return once `model` answers. Raises EvaluationError `model_not_ready` after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                await self._ask_once(model, [{"role": "user", "content": "Hello"}], max_tokens=1)
                return
            except _Busy as busy:
                pause = min(busy.seconds or 2.0, LONGEST_PAUSE)
                if time.monotonic() + pause > deadline:
                    raise EvaluationError(
                        "model_not_ready",
                        f"{model} was not ready to serve within {seconds:.0f} s ({busy}); look at its pool.",
                    ) from None
            await asyncio.sleep(pause)

    async def ask(
        self, model: str, messages: list[dict[str, Any]], tools: list[dict[str, object]] | None = None
    ) -> Answer:
        """The answer to a prompt, in words: the `tools` are shown to the model, but it is not to call any.

        A prompt the endpoint refuses gives an empty answer, finish reason `refused`.
        """
        for number in range(1, TRIES + 1):
            try:
                return await self._ask_once(model, messages, max_tokens=self._max_tokens, tools=tools)
            except _Busy as busy:
                if number == TRIES:
                    raise EvaluationError(
                        "endpoint_failed", f"The endpoint failed {TRIES} times: {busy}."
                    ) from None
                await asyncio.sleep(min(busy.seconds or 0.5 * 2**number, LONGEST_PAUSE))
        raise AssertionError("the last try returns or raises")

    async def _ask_once(
        self,
        model: str,
        messages: list[dict[str, Any]],
        max_tokens: int,
        tools: list[dict[str, object]] | None = None,
    ) -> Answer:
        body = {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, "seed": 0}
        if tools:
            body |= {"tools": tools, "tool_choice": "none"}
        if self._logprobs:
            body |= {"logprobs": True, "top_logprobs": 2}
        try:
            response = await self._client.post(self._url, json=body)
        except httpx.HTTPError as error:
            raise _Busy(f"no answer ({type(error).__name__})") from error
        if response.status_code < 500 and not _is_json(response):
            raise _Busy(f"something in front of it answered {response.status_code}", _retry_after(response))
        if (
            response.status_code == HTTPStatus.BAD_REQUEST
            and "logprobs" in body
            and "logprobs" in response.text
        ):
            self._logprobs = False  # it gives none: the rows are graded without
            return await self._ask_once(model, messages, max_tokens, tools)
        if response.status_code == HTTPStatus.BAD_REQUEST:
            return Answer("", None, True, REFUSED, 0)
        if response.is_success:
            return _read(response)
        raise _problem(model, response)


def _is_json(response: httpx.Response) -> bool:
    """A proxy's page, shown while what is behind it starts, says nothing of a model or a row."""
    return str(response.headers.get("content-type", "")).startswith("application/json")


def _read(response: httpx.Response) -> Answer:
    try:
        completion = _Completion.model_validate_json(response.content)
    except ValidationError:
        raise EvaluationError(
            "bad_answer", "The endpoint's answer is not an OpenAI chat completion."
        ) from None
    choice = completion.choices[0]
    reasoning = (
        choice.message.reasoning if choice.message.reasoning is not None else choice.message.reasoning_content
    )
    return Answer(
        content=choice.message.content or "",
        reasoning=reasoning,
        is_split=reasoning is not None or GATEWAY_HEADER in response.headers,
        finish_reason=choice.finish_reason or "",
        completion_tokens=completion.usage.completion_tokens,
        sure=sureness((choice.logprobs and choice.logprobs.content) or []),
    )


def _problem(model: str, response: httpx.Response) -> Exception:
    status = response.status_code
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.REQUEST_TIMEOUT) or response.is_server_error:
        return _Busy(f"it answered {status}", _retry_after(response))
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return EvaluationError(
            "endpoint_refused", f"The endpoint does not let this key call {model} ({status})."
        )
    if status == HTTPStatus.NOT_FOUND:
        return EvaluationError("model_not_found", f"The endpoint does not know {model}.")
    return EvaluationError("endpoint_failed", f"The endpoint answered {status}.")


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, when the answer names them; neither gateway nor engine uses the header's date form."""
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else None
