"""The gateway as an ASGI application: five paths, and nothing else.

`POST /v1/chat/completions`, `POST /v1/completions`, `POST /v1/responses`, `POST /v1/feedback`,
`GET /v1/models` (and `/v1/models/<name>`).
"""

import asyncio
import json
import logging
from typing import Self

from stillhouse.accounts.keys import INFERENCE, MODELS
from stillhouse.core.secrets import same
from stillhouse.gateway import feedback
from stillhouse.gateway.answers import StreamedAnswer, WholeAnswer, engine_error
from stillhouse.gateway.auth import Caller, bearer_token, identify, wrong_key
from stillhouse.gateway.budgets import Budgets
from stillhouse.gateway.cold import ColdVersions
from stillhouse.gateway.config import GatewayConfig
from stillhouse.gateway.connection import (
    Application,
    Call,
    ClientGone,
    ClientWatch,
    Message,
    Receive,
    Scope,
    Send,
    check_headers,
)
from stillhouse.gateway.errors import ApiError
from stillhouse.gateway.fastjson import encode_ascii
from stillhouse.gateway.hybrid import Hybrid, may_leave
from stillhouse.gateway.keeping import Kept
from stillhouse.gateway.ledger import Ledger
from stillhouse.gateway.limits import Limits
from stillhouse.gateway.link import DatabaseLink
from stillhouse.gateway.metrics import CONTENT_TYPE, OTHER, Metrics
from stillhouse.gateway.passing import STREAM_HEADERS, pass_on, read_whole
from stillhouse.gateway.remote import Remote
from stillhouse.gateway.requests import Endpoint, InferenceRequest, parse_request
from stillhouse.gateway.response_input import parse_response_request
from stillhouse.gateway.response_output import StreamedResponse, WholeResponse
from stillhouse.gateway.routing import Cold, Target, list_models, not_found, resolve
from stillhouse.gateway.shadow import Shadows
from stillhouse.gateway.snapshot import Snapshot
from stillhouse.gateway.sparing import Sparing
from stillhouse.gateway.thinking import for_engine
from stillhouse.gateway.tracing import Tracing
from stillhouse.gateway.upstream import Upstream

logger = logging.getLogger("stillhouse.gateway")

_RESPONSES = "/v1/responses"
_INFERENCE: dict[str, Endpoint] = {
    "/v1/chat/completions": "chat/completions",
    "/v1/completions": "completions",
    _RESPONSES: "chat/completions",
}
_MODELS = "/v1/models"
_METRICS = "/metrics"
_CLIENT_CLOSED = 499
"""For log and ledger, as nginx counts it: the app left before the answer began."""
NOTHING_HERE = ApiError(
    404,
    "unknown_url",
    "There is nothing here. The API is /v1/chat/completions, /v1/completions, /v1/responses, /v1/feedback "
    "and /v1/models.",
)


class Gateway:
    """One process's gateway. `start` before the first request, `stop` after the last."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self.ledger = Ledger(config)
        self._limits = Limits()
        self.link = DatabaseLink(config, self.ledger, self._limits)
        self.cold = ColdVersions(self.link, config)
        self._upstream = Upstream(config)
        self.tracing = Tracing(enabled=config.tracing)
        self.shadows = Shadows(self._upstream, self.ledger.begin, self.ledger.end)
        self._remote = Remote(config)
        self._budgets = Budgets(config)
        self._hybrid = Hybrid(self._upstream, self._remote, self.ledger, self._budgets, self._book)
        self._metrics = Metrics(self.link, self.ledger, self.shadows, self.cold)
        self._refusals = Sparing(logger)

    @classmethod
    def from_settings(cls) -> Self:
        return cls(GatewayConfig.from_settings())

    @staticmethod
    def serves(path: str) -> bool:
        """Whether a path is the gateway's: all of /v1/, so that a client of the API never meets a page."""
        return path == "/v1" or path.startswith("/v1/") or path == _METRICS

    async def start(self) -> None:
        await self.ledger.start()
        await self._upstream.start()
        await self._remote.start()
        await self.link.start()

    async def stop(self) -> None:
        await self.shadows.stop()
        await self._upstream.stop()
        await self._remote.stop()
        await self._budgets.stop()
        await self.link.stop()
        await self.ledger.stop()

    async def lifespan(self, receive: Receive, send: Send) -> None:
        """ASGI's lifespan protocol."""
        await receive()
        await self.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(scope, receive, send)
        record = call.record
        self._metrics.in_flight.inc()
        try:
            await self._dispatch(call)
            record.status = call.status
        except ApiError as error:
            record.status, record.code = error.status, error.code
            await call.send_error(error)
        except ClientGone:
            record.cancelled = True
            record.status = call.status or _CLIENT_CLOSED
        except Exception:
            logger.exception("request %s failed", record.id)
            record.status, record.code = 500, "internal_error"
            if call.status:
                raise  # the server breaks the connection off, so that half an answer does not look whole
            await call.send_error(_internal_error(record.id))
        finally:
            self._close(call)

    async def let_by(self, scope: Scope, receive: Receive, send: Send, application: Application) -> None:
        """Have `application` answer an app's request that asks no model: it counts against its key's requests
        a minute like any other, and asks for no tokens. One that is refused is in metrics and log."""
        call = Call(scope, receive, send)
        try:
            caller = await self._caller(scope)
            call.record.caller, call.record.workspace_id = caller.id, caller.workspace_id
            told = self._limits.admit(caller.key, uses_tokens=False) if caller.key else []
        except ApiError as error:
            record = call.record
            record.status, record.code, record.total_ms = error.status, error.code, record.elapsed_ms()
            self._metrics.refused(error.code)
            self._refusals.info(_line(call))
            await call.send_error(error)
            return

        async def send_telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *told]
            await send(message)

        await application(scope, receive, send_telling)

    def _close(self, call: Call) -> None:
        record = call.record
        if not call.booked:
            record.total_ms = record.elapsed_ms()
            if record.served:
                self._book(call)
        call.end_span()
        # The loop writes what was sent at the end of its turn: the app need not wait for what only we read.
        asyncio.get_running_loop().call_soon(self._tell, call)

    def _tell(self, call: Call) -> None:
        """Metrics and log."""
        record = call.record
        self._metrics.in_flight.dec()
        if call.path != _METRICS:
            self._metrics.count(_endpoint_of(call.path), record)
        if logger.isEnabledFor(logging.INFO):
            logger.info("%s", _line(call))

    def _book(self, call: Call) -> None:
        """Into the ledger, before the app has the last byte: what it got whole is there, whatever happens."""
        call.booked = True
        call.record.total_ms = call.record.elapsed_ms()
        self.ledger.end(call.record)
        self._limits.spend(call.record)

    async def _dispatch(self, call: Call) -> None:
        if call.path == _METRICS:
            await self._show_metrics(call)
            return
        endpoint = _INFERENCE.get(call.path)
        check_headers(call.scope["headers"], self._config.max_body_bytes)
        is_feedback = call.path == feedback.PATH
        if endpoint is None and not is_feedback and not _is_models(call.path):
            raise NOTHING_HERE
        allowed = "POST" if endpoint or is_feedback else "GET"
        if call.scope["method"] != allowed:
            call.headers.append((b"allow", allowed.encode()))
            raise ApiError(405, "method_not_allowed", f"{call.path[:100]} takes {allowed} requests only.")
        caller = await self._caller(call.scope)
        call.record.caller, call.record.workspace_id = caller.id, caller.workspace_id
        if is_feedback:
            caller.require(INFERENCE)
            await self._take_feedback(call, caller)
            return
        if endpoint is None:
            caller.require(MODELS)
            await self._models(call, caller)
            return
        caller.require(INFERENCE)
        trace, call.end_span = self.tracing.begin(call.record, call.path, call.scope["headers"])
        call.upstream_headers |= trace
        if caller.key is not None:
            call.record.key = caller.key.id
            call.headers += self._limits.admit(caller.key)
        raw = await call.read_body(max_bytes=self._config.max_body_bytes, seconds=self._config.body_seconds)
        is_response = call.path == _RESPONSES
        request = parse_response_request(raw) if is_response else parse_request(endpoint, raw)
        call.record.model = request.model
        target = await self._target(call, caller, request)
        call.record.served, call.record.version, call.record.alias = target.name, target.version, target.alias
        if target.keep_days:
            call.record.kept = Kept.of(request, target.keep_days)
        self.ledger.begin(call.record)
        call.headers.append((b"x-stillhouse-version", target.name.encode()))
        if target.shadow is not None:
            self.shadows.send(request, target.shadow, call.record, limit=self._config.max_shadows)
        if target.escalation is not None and may_leave(call.scope["headers"], request):
            await self._hybrid.answer(call, request, target)
            return
        await (self._stream if request.stream else self._whole)(call, request, target)

    async def _take_feedback(self, call: Call, caller: Caller) -> None:
        feedback.check_caller(caller)
        if caller.key is not None:
            call.record.key = caller.key.id
            call.headers += self._limits.admit(caller.key)
        raw = await call.read_body(max_bytes=self._config.max_body_bytes, seconds=self._config.body_seconds)
        said = feedback.parse_feedback(raw)
        if not self.ledger.note(said.line(caller)):
            raise ApiError(503, "not_now", "Feedback cannot be kept just now. Send it again.", retry_after=5)
        body = json.dumps(said.answer()).encode()
        await call.send_body(202, body)

    async def _show_metrics(self, call: Call) -> None:
        wanted = self._config.metrics_token
        if not wanted:
            raise NOTHING_HERE
        if not same(bearer_token(call.scope["headers"]), wanted):
            raise ApiError(401, "invalid_token", "Send METRICS_TOKEN in the header `Authorization: Bearer`.")
        body = self._metrics.text()
        head = [(b"content-type", CONTENT_TYPE), (b"content-length", b"%d" % len(body))]
        await call.start(200, head)
        await call.send({"type": "http.response.body", "body": body})

    # ---- who, and what

    def _snapshot(self) -> Snapshot:
        if self.link.snapshot is None:
            raise ApiError(503, "starting", "The gateway is starting. Try again in a moment.", retry_after=1)
        return self.link.snapshot

    async def _caller(self, scope: Scope) -> Caller:
        token = bearer_token(scope["headers"])
        caller = identify(token, self._snapshot())
        if caller is None:
            await self.link.catch_up()  # made a moment ago?
            caller = identify(token, self._snapshot())
        if caller is None:
            raise wrong_key()
        return caller

    async def _target(self, call: Call, caller: Caller, request: InferenceRequest) -> Target:
        def now() -> Target:
            return resolve(self._snapshot(), caller, request.model, request.user)

        try:
            return now()
        except Cold:
            pass
        except ApiError as error:
            if error.status not in (403, 404):
                raise
            await self.link.catch_up()  # published or approved a moment ago?
        async with ClientWatch(call.receive):
            return await self.cold.wait(now)

    async def _models(self, call: Call, caller: Caller) -> None:
        models = list_models(self._snapshot(), caller)
        if call.path == _MODELS:
            await call.send_json({"object": "list", "data": models})
            return
        name = call.path.removeprefix(_MODELS + "/")
        for model in models:
            if model["id"] == name:
                await call.send_json(model)
                return
        raise not_found(name[:100])

    # ---- the two kinds of answer

    async def _whole(self, call: Call, request: InferenceRequest, target: Target) -> None:
        body = for_engine(request, target)
        async with (
            ClientWatch(call.receive),
            self._upstream.answer(target.replicas, request.endpoint, body, call.upstream_headers) as response,
        ):
            raw = await read_whole(response)
        if response.status != 200:
            raise engine_error(response.status, raw, constrained=request.constrained)
        kind = WholeAnswer if request.echo is None else WholeResponse
        answer = kind(request, target, call.record).rewrite(raw)
        call.record.status = 200
        self._book(call)
        await call.send_body(200, answer)

    async def _stream(self, call: Call, request: InferenceRequest, target: Target) -> None:
        body = for_engine(request, target)
        kind = StreamedAnswer if request.echo is None else StreamedResponse
        answer = kind(request, target, call.record)
        async with (
            ClientWatch(call.receive),
            self._upstream.answer(target.replicas, request.endpoint, body, call.upstream_headers) as response,
        ):
            if response.status != 200:
                raw = await read_whole(response)
                raise engine_error(response.status, raw, constrained=request.constrained)
            await call.start(200, STREAM_HEADERS)
            last = await pass_on(response, answer, call)
        call.record.status = 200
        self._book(call)
        await call.send({"type": "http.response.body", "body": last})


def _line(call: Call) -> str:
    """Of the log, without anything of what was asked or said."""
    return encode_ascii({"path": call.path[:100], **call.record.log_fields()}).decode()


def _is_models(path: str) -> bool:
    return path == _MODELS or path.startswith(_MODELS + "/")


def _endpoint_of(path: str) -> str:
    if _is_models(path):
        return "models"
    return path.removeprefix("/v1/") if path in _INFERENCE or path == feedback.PATH else OTHER


def _internal_error(request_id: str) -> ApiError:
    return ApiError(
        500, "internal_error", f"Something went wrong here. Tell your operator the request id {request_id}."
    )
