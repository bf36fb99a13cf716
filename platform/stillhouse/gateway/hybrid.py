"""An alias that may ask a larger model elsewhere: first the version here, then, for a reason, the other one.

The reasons in their order: the engine says that the prompt is too long for it or that it takes no tools; the
answer does not have the form that was asked for; it is less likely right than the alias's threshold. Where
only the whole answer can tell, a stream is held back until then. A remote model that fails, a budget that is
used up, a destination that is no longer allowed: the app gets what was answered here.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import aiohttp

from stillhouse.core.ids import new_id
from stillhouse.gateway.answers import StreamedAnswer, WholeAnswer, engine_error, interrupted
from stillhouse.gateway.budgets import Budgets
from stillhouse.gateway.connection import Call, ClientWatch
from stillhouse.gateway.doubting import CONFIDENCE, Doubt, Heard, doubt_of
from stillhouse.gateway.errors import ApiError
from stillhouse.gateway.judging import has_form, wants_form
from stillhouse.gateway.ledger import Ledger
from stillhouse.gateway.passing import STREAM_HEADERS, pass_on, read_whole
from stillhouse.gateway.remote import Remote, RemoteFailed, read_bounded
from stillhouse.gateway.requests import InferenceRequest
from stillhouse.gateway.response_output import StreamedResponse, WholeResponse
from stillhouse.gateway.routing import Target
from stillhouse.gateway.snapshot import Escalation
from stillhouse.gateway.streams import choices_of_stream
from stillhouse.gateway.thinking import for_engine
from stillhouse.gateway.upstream import Upstream
from stillhouse.gateway.usage import Record
from workers.contract import ThinkContract

logger = logging.getLogger(__name__)

CONTEXT, TOOLS, FORMAT = "context", "tools", "format"
_LOCAL_ONLY = b"x-stillhouse-local-only"
_NOT_LOCAL_ONLY = (b"", b"0", b"false", b"no")
_MAX_HELD_BYTES = 16 * 1024 * 1024
_BYTES_PER_TOKEN = 2  # of JSON, at the least: what a prompt may cost at most
_GUESSED_BYTES_PER_TOKEN = 4  # until the remote service says


def may_leave(headers: list[tuple[bytes, bytes]], request: InferenceRequest) -> bool:
    """Whether the app allows it for this request; text completions always stay."""
    if request.endpoint != "chat/completions":
        return False
    return not any(
        name == _LOCAL_ONLY and value.strip().lower() not in _NOT_LOCAL_ONLY for name, value in headers
    )


@dataclass(frozen=True, slots=True)
class Local:
    """What came of asking here."""

    body: bytes = b""
    """Of the answer, for the app; the end of a stream where the rest is sent already."""
    error: ApiError | None = None
    reason: str = ""
    """To ask the remote model; empty: there is none."""


class Hybrid:
    """Answers requests of aliases that have an escalation."""

    def __init__(
        self,
        upstream: Upstream,
        remote: Remote,
        ledger: Ledger,
        budgets: Budgets,
        book: Callable[[Call], None],
    ) -> None:
        self._upstream = upstream
        self._remote = remote
        self._ledger = ledger
        self._budgets = budgets
        self._book = book

    async def answer(self, call: Call, request: InferenceRequest, target: Target) -> None:
        """The answer from here, or from the remote model where there is a reason to ask it."""
        if target.escalation is None:
            raise RuntimeError("an alias without an escalation has nothing to ask")
        async with ClientWatch(call.receive):
            local = await self._ask_here(call, request, target)
            last = local.body
            if local.reason in target.escalation.reasons:
                last = await self._ask_there(call, request, target.escalation, local)
            elif local.error is not None:
                raise local.error
            elif request.stream and not call.status:
                await call.start(200, STREAM_HEADERS)
        call.record.status = 200
        self._book(call)
        if call.status:
            await call.send({"type": "http.response.body", "body": last})
        else:
            await call.send_body(200, last)

    # ---- here

    async def _ask_here(self, call: Call, request: InferenceRequest, target: Target) -> Local:
        doubt = doubt_of(request, target)
        body = for_engine(doubt.asked_of(request) if doubt else request, target)
        replicas, headers = target.replicas, call.upstream_headers
        async with self._upstream.answer(replicas, request.endpoint, body, headers) as response:
            if response.status != 200:
                error = engine_error(response.status, await read_whole(response))
                return Local(error=error, reason=_hard_reason(request, error))
            if not request.stream:
                return _judged(request, target, call, await read_whole(response), doubt)
            answer = _streamed(request, target, call.record)
            if doubt or wants_form(request.body):
                return await _held(response, answer, request, target, call, doubt)
            await call.start(200, STREAM_HEADERS)
            return Local(await pass_on(response, answer, call))

    # ---- there

    async def _ask_there(
        self, call: Call, request: InferenceRequest, escalation: Escalation, local: Local
    ) -> bytes:
        """The last bytes of the remote model's answer, or, where it has none, of the local one."""
        body = self._remote.body(request, escalation)
        most = len(body) // _BYTES_PER_TOKEN * escalation.prompt_price
        most += self._remote.most_tokens(request) * escalation.completion_price
        refusal = "" if self._remote.is_allowed(escalation) else "destination_not_allowed"
        refusal = refusal or await self._budgets.set_aside(call.record, escalation, most)
        if not refusal:
            try:
                return await self._escalate(call, request, escalation, local.reason, body)
            except RemoteFailed as error:
                refusal = error.code
        logger.warning("request %s was not escalated: %s", call.record.id, refusal)
        call.headers.append((b"x-stillhouse-escalation", b"refused; " + refusal.encode()))
        if local.error is not None:
            raise local.error
        if request.stream:
            await call.start(200, STREAM_HEADERS)
        return local.body

    async def _escalate(
        self, call: Call, request: InferenceRequest, escalation: Escalation, reason: str, body: bytes
    ) -> bytes:
        """Ask, and book: the request's own record becomes the remote answer's, and the local attempt, if it
        made any tokens, a shadow's: an answer that nobody saw."""
        record = call.record
        before, headers = replace(record), list(call.headers)
        unseen = self._set_aside(record)
        target = Target(f"remote:{escalation.model}"[:160], _THINK, (), alias=record.alias)
        _make_remote(record, target, escalation, reason, len(body))
        try:
            async with self._remote.answer(escalation, body) as response:
                call.headers[:] = [pair for pair in call.headers if pair[0] != b"x-stillhouse-version"]
                call.headers += [
                    (b"x-stillhouse-version", target.name.encode("ascii", "replace")),
                    (b"x-stillhouse-escalation", reason.encode()),
                ]
                if not request.stream:
                    last = _rewritten(request, target, record, await read_bounded(response))
                else:
                    await call.start(200, STREAM_HEADERS)
                    last = await pass_on(response, _streamed(request, target, record), call)
        except RemoteFailed as failure:
            self._book_failure(record, failure)
            if unseen is not None:
                self._ledger.forget(unseen)
            _restore(record, before)
            call.headers[:] = headers
            raise
        except BaseException:
            self._end(unseen)
            raise
        self._end(unseen)
        return last

    def _set_aside(self, record: Record) -> Record | None:
        if not record.tokens:
            return None
        unseen = replace(record, id=new_id("req"), shadow=True, status=200, guard=None, kept=None)
        unseen.total_ms = record.elapsed_ms()
        self._ledger.begin(unseen)
        unseen.counted()
        return unseen

    def _end(self, unseen: Record | None) -> None:
        if unseen is not None:
            self._ledger.end(unseen)

    def _book_failure(self, record: Record, failure: RemoteFailed) -> None:
        """An attempt that gave nothing: a row of its own, without tokens."""
        failed = replace(
            record, id=new_id("req"), status=failure.status, code=failure.code, guard=None, kept=None
        )
        failed.prompt_tokens = failed.completion_tokens = failed.reasoning_tokens = 0
        failed.shadow, failed.total_ms = True, record.elapsed_ms()
        self._ledger.end(failed)


_THINK = ThinkContract(family="plain")


async def _held(
    response: aiohttp.ClientResponse,
    answer: StreamedAnswer,
    request: InferenceRequest,
    target: Target,
    call: Call,
    doubt: Doubt | None,
) -> Local:
    """A stream of which nothing is sent on before it is known to be good enough."""
    raw, held = bytearray(), bytearray()
    heard = Heard(doubt) if doubt else None
    try:
        async for piece in response.content.iter_any():
            raw += piece
            held += answer.feed(heard.feed(piece) if heard else piece)  # as it comes: that counts its tokens
            if len(raw) > _MAX_HELD_BYTES:
                raise interrupted()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise interrupted() from error
    if heard is not None:
        held += answer.feed(heard.finish())
    if not answer.ended:
        raise interrupted()
    if answer.failed:
        return Local(bytes(held) + answer.end())
    failed = wants_form(request.body) and not has_form(request.body, choices_of_stream(bytes(raw), target))
    confidence = heard.confidence() if heard else None
    return Local(bytes(held) + answer.end(), reason=_reason(target, call, failed, doubt, confidence))


def _reason(
    target: Target, call: Call, failed_form: bool, doubt: Doubt | None, confidence: float | None
) -> str:
    """The first of the alias's reasons to ask elsewhere. The app is told how likely the answer is right."""
    if doubt is not None and confidence is not None:
        call.headers.append((b"x-stillhouse-confidence", f"{confidence:.3f}".encode()))
    doubtful = doubt is not None and confidence is not None and confidence < doubt.threshold
    found = [reason for reason, holds in ((FORMAT, failed_form), (CONFIDENCE, doubtful)) if holds]
    reasons = target.escalation.reasons if target.escalation else ()
    return next((reason for reason in found if reason in reasons), "")


def _hard_reason(request: InferenceRequest, error: ApiError) -> str:
    """Why the engine cannot answer this at all, where another one might."""
    if error.code == "context_length_exceeded":
        return CONTEXT
    # vLLM refuses tools, in words that speak of tool choice or tool calls, when it was started without them.
    refused_tools = error.code == "engine_refused" and "tools" in request.body and "tool" in error.message
    return TOOLS if refused_tools else ""


def _whole(request: InferenceRequest, target: Target, record: Record) -> WholeAnswer:
    return (WholeAnswer if request.echo is None else WholeResponse)(request, target, record)


def _rewritten(request: InferenceRequest, target: Target, record: Record, raw: bytes) -> bytes:
    """A remote answer for the app; raises RemoteFailed for what is none."""
    try:
        body = _whole(request, target, record).rewrite(raw)
    except (ApiError, LookupError, TypeError, AttributeError) as error:
        raise RemoteFailed("remote_unreadable") from error
    if not record.completion_tokens:
        record.completion_tokens = len(raw) // _GUESSED_BYTES_PER_TOKEN
    return body


def _streamed(request: InferenceRequest, target: Target, record: Record) -> StreamedAnswer:
    return (StreamedAnswer if request.echo is None else StreamedResponse)(request, target, record)


def _judged(request: InferenceRequest, target: Target, call: Call, raw: bytes, doubt: Doubt | None) -> Local:
    raw, confidence = doubt.whole(raw) if doubt else (raw, None)
    body = _whole(request, target, call.record).rewrite(raw)
    failed = False
    if wants_form(request.body):
        plain = WholeAnswer(request, target, Record(id="")).read(raw)
        failed = not has_form(request.body, plain["choices"])
    return Local(body, reason=_reason(target, call, failed, doubt, confidence))


def _make_remote(
    record: Record, target: Target, escalation: Escalation, reason: str, body_bytes: int
) -> None:
    """The request's record from here on. Tokens are a guess until the remote service counts them."""
    record.served, record.version, record.escalation = target.name, "", reason
    record.prompt_price, record.completion_price = escalation.prompt_price, escalation.completion_price
    record.prompt_tokens = body_bytes // _GUESSED_BYTES_PER_TOKEN
    record.completion_tokens = record.reasoning_tokens = 0
    record.first_token_ms, record.finish_reason = None, ""
    record.kept = record.kept and record.kept.anew()
    if record.guard is not None:
        record.guard.put(record.line())
        record.counted()


def _restore(record: Record, before: Record) -> None:
    record.served, record.version, record.escalation = before.served, before.version, ""
    record.prompt_price = record.completion_price = 0
    record.prompt_tokens, record.completion_tokens = before.prompt_tokens, before.completion_tokens
    record.reasoning_tokens, record.first_token_ms = before.reasoning_tokens, before.first_token_ms
    record.finish_reason, record.kept = before.finish_reason, before.kept
    if record.guard is not None:
        record.guard.put(record.line())
        record.counted()
