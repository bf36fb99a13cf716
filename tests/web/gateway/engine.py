"""A small HTTP server that speaks vLLM's protocol: it stands for somebody else's service."""

import asyncio
import json
import math
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Script:
    """What the engine says next."""

    text: str = "Hello."
    piece: int = 4
    """Characters per streamed chunk."""
    pause: float = 0.0
    """Seconds before each chunk, or before the whole answer."""
    finish: str = "stop"
    break_after: int | None = None
    """Cut the connection after this many chunks."""
    error_after: int | None = None
    """Send an error event after this many chunks, as vLLM does when generation fails."""
    status: int = 200
    body: dict[str, Any] | None = None
    """An answer of its own, with `status`."""
    logprobs: bool = False
    margin: float | None = None
    """With log-probabilities for who asks: the chosen token is likelier than the other by so much."""
    tool_calls: list[dict[str, str]] = field(default_factory=list)
    """Functions it calls in the place of a text: name and arguments."""


@dataclass
class Engine:
    """Serves the names in `models`; anything else is unknown to it."""

    models: set[str]
    script: Script = field(default_factory=Script)
    slow: dict[str, Script] = field(default_factory=dict)
    """Models that take the pause of another script before a whole answer."""
    seen: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of the requests, in order."""
    headers: list[dict[str, str]] = field(default_factory=list)
    """Of the requests, their names in small letters."""
    aborted: int = 0
    """Requests that were given up by the other side."""
    sent: int = 0
    """Chunks of text streamed so far."""
    url: str = ""

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="engine")
        self._thread.start()
        self._run(self._start())

    def stop(self) -> None:
        self._run(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    async def _start(self) -> None:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._counting(self._chat))
        app.router.add_post("/v1/completions", self._counting(self._completion))
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    def _counting(
        self, handler: Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            body = await request.json()
            self.seen.append(body)
            self.headers.append({name.lower(): value for name, value in request.headers.items()})
            if body["model"] not in self.models:
                message = f"The model `{body['model']}` does not exist."
                return web.json_response({"error": {"message": message, "code": 404}}, status=404)
            if self.script.body is not None:
                return web.json_response(self.script.body, status=self.script.status)
            try:
                return await handler(request, body)
            except (asyncio.CancelledError, ConnectionResetError):
                self.aborted += 1
                raise

        return handle

    async def _chat(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body.get("stream"):
            return await self._stream(request, body, self._chat_chunks(body))
        await asyncio.sleep(self.slow.get(body["model"], self.script).pause)
        choice = {
            "index": 0,
            "finish_reason": self.script.finish,
            "logprobs": self._logprobs(body, self.script.text),
        }
        message: dict[str, Any] = {
            "role": "assistant",
            "content": self.script.text,
            "reasoning": None,
            "tool_calls": self._calls(),
        }
        return web.json_response(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [
                    {**choice, "index": index, "message": message} for index in range(body.get("n", 1))
                ],
                "usage": self._usage(len(self.script.text)),
            }
        )

    async def _completion(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body.get("stream"):
            return await self._stream(request, body, self._completion_chunks())
        choice = {"index": 0, "text": self.script.text, "finish_reason": self.script.finish, "logprobs": None}
        answer = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"]}
        return web.json_response({**answer, "choices": [choice], "usage": self._usage(len(self.script.text))})

    async def _chat_chunks(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        for index in range(body.get("n", 1)):
            yield {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        for call in self._calls():
            whole = {"index": 0, **call}
            head = {**whole, "function": {**whole["function"], "arguments": ""}}
            rest = {"index": 0, "function": {"arguments": whole["function"]["arguments"]}}
            for part, finish in ((head, None), (rest, "tool_calls")):
                yield {"index": 0, "delta": {"tool_calls": [part]}, "finish_reason": finish}
        pieces = self._pieces(self.script.text)
        for number, piece in enumerate(pieces):
            finish = self.script.finish if number == len(pieces) - 1 else None
            for index in range(body.get("n", 1)):
                yield {
                    "index": index,
                    "delta": {"content": piece},
                    "logprobs": self._logprobs(body, piece),
                    "finish_reason": finish,
                }

    async def _completion_chunks(self) -> AsyncIterator[dict[str, Any]]:
        for piece in self._pieces(self.script.text):
            yield {"index": 0, "text": piece, "logprobs": None, "finish_reason": None}
        yield {"index": 0, "text": "", "logprobs": None, "finish_reason": self.script.finish}

    async def _stream(
        self, request: web.Request, body: dict[str, Any], choices: AsyncIterator[dict[str, Any]]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        options = body.get("stream_options") or {}
        kind = "chat.completion.chunk" if "messages" in body else "text_completion"
        head = {"id": "x-1", "object": kind, "created": 1, "model": body["model"]}
        number, tokens = 0, 0
        async for choice in choices:
            if self.script.break_after == number and request.transport:
                request.transport.abort()
            if self.script.error_after == number:
                await _event(response, {"error": {"message": "EngineCore died", "type": "x", "code": 500}})
                break
            await asyncio.sleep(self.script.pause)
            tokens += len(choice.get("text") or choice.get("delta", {}).get("content") or "")
            usage = {"usage": self._usage(tokens)} if options.get("continuous_usage_stats") else {}
            await _event(response, {**head, "choices": [choice], **usage})
            number += 1
            self.sent = number
        else:
            if options.get("include_usage"):
                await _event(response, {**head, "choices": [], "usage": self._usage(tokens)})
        await response.write(b"data: [DONE]\n\n")
        return response

    def _pieces(self, text: str) -> list[str]:
        step = self.script.piece
        return [text[start : start + step] for start in range(0, len(text), step)]

    def _calls(self) -> list[dict[str, Any]]:
        return [
            {"id": f"call_{number}", "type": "function", "function": call}
            for number, call in enumerate(self.script.tool_calls)
        ]

    def _logprobs(self, body: dict[str, Any], text: str) -> dict[str, Any] | None:
        if self.script.margin is not None and body.get("logprobs"):
            chosen, other = math.log(0.5 + self.script.margin / 2), math.log(0.5 - self.script.margin / 2)
            return {"content": [_entry(piece, chosen, other) for piece in self._pieces(text)]}
        if not self.script.logprobs:
            return None
        return {"content": [{"token": text, "logprob": -0.5, "bytes": None, "top_logprobs": []}]}

    @staticmethod
    def _usage(tokens: int) -> dict[str, int]:
        return {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}


def _entry(token: str, chosen: float, other: float) -> dict[str, Any]:
    top = [{"token": token, "logprob": chosen}, {"token": "?", "logprob": other}]
    return {"token": token, "logprob": chosen, "top_logprobs": top}


async def _event(response: web.StreamResponse, value: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(value).encode() + b"\n\n")
