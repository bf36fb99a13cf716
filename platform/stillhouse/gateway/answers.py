"""The engine's answers on their way to the app: reasoning split off, tokens counted, the version named."""

import json
from collections.abc import Iterable
from typing import Any

from stillhouse.gateway.errors import ApiError
from stillhouse.gateway.fastjson import decode, encode_any
from stillhouse.gateway.requests import InferenceRequest
from stillhouse.gateway.routing import Target
from stillhouse.gateway.think import Split, ThinkSplitter
from stillhouse.gateway.usage import Record

_MOST_TOKENS = 100_000_000
_MAX_EVENT_BYTES = 16 * 1024 * 1024
_DONE = b"[DONE]"
END_OF_STREAM = b"data: [DONE]\n\n"


def interrupted() -> ApiError:
    return ApiError(
        502,
        "engine_interrupted",
        "The engine stopped in the middle of the answer. Send the request again.",
        retry_after=1,
    )


def engine_error(status: int, raw: bytes, *, constrained: bool = False) -> ApiError:
    """What the app is told when the engine refused or failed. `constrained`: a grammar was asked for, and the
    engine only finds out that nothing fits one (it refers to itself without an end) when it makes it.

    A refusal of the request itself (400, 413, 422) carries the engine's sentence, which speaks of the app's
    own fields. Everything else is between us and the engine.
    """
    if status in (400, 413, 422):
        message, param = _engine_message(raw)
        code = "context_length_exceeded" if "maximum context length" in message else "engine_refused"
        return ApiError(400, code, message, param=param)
    if status in (404, 503):
        return ApiError(
            503,
            "model_loading",
            "The engine is just loading this model. Try again in a moment.",
            retry_after=2,
        )
    if status == 429:
        return ApiError(
            429,
            "engine_busy",
            "The engine takes no more requests just now. Try again in a moment.",
            retry_after=1,
        )
    what = f"The engine answered with an error of its own ({status})."
    if constrained and status == 500:
        what = f"{what} Look whether the schema or grammar refers to nothing but itself; if it is right:"
    return ApiError(502, "engine_error", f"{what} Tell your operator.")


def _engine_message(raw: bytes) -> tuple[str, str | None]:
    try:
        body = json.loads(raw)
        error = body.get("error") or body
        message, param = error.get("message"), error.get("param")
    except (ValueError, AttributeError):
        message = param = None
    if not isinstance(message, str):
        message = "The engine refused the request without saying why."
    return message[:2000], param if isinstance(param, str) else None


def _put_reasoning(target: dict[str, Any], reasoning: str | None) -> None:
    """Under both names: `reasoning` is today's, and many clients still read `reasoning_content`."""
    target["reasoning"] = target["reasoning_content"] = reasoning


class Answer:
    """What both kinds of answer have in common: whose it is and how its text is split."""

    def __init__(self, request: InferenceRequest, target: Target, record: Record) -> None:
        self._request = request
        self._target = target
        self._record = record
        self._chat = request.endpoint == "chat/completions"
        self._prompt_opens = target.think.prompt_opens and not request.constrained

    def _count(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self._record.prompt_tokens = _count_of(usage.get("prompt_tokens"))
            self._record.completion_tokens = _count_of(usage.get("completion_tokens"))
            if (reasoning := _reasoning_tokens(usage)) is not None:
                self._record.reasoning_tokens = reasoning
            self._record.counted()


def _count_of(value: Any) -> int:
    """A count that the ledger can hold, whatever a remote service says."""
    return min(max(value, 0), _MOST_TOKENS) if isinstance(value, int) else 0


def _reasoning_tokens(usage: dict[str, Any]) -> int | None:
    """What the engine says of it; one that does not split by itself says nothing."""
    details = usage.get("completion_tokens_details")
    count = details.get("reasoning_tokens") if isinstance(details, dict) else None
    return min(count, _MOST_TOKENS) if isinstance(count, int) and count > 0 else None


class WholeAnswer(Answer):
    """An answer in one piece."""

    def rewrite(self, raw: bytes) -> bytes:
        """The body for the app; raises ApiError 502 when the engine's is no answer."""
        return encode_any(self.read(raw))

    def read(self, raw: bytes) -> dict[str, Any]:
        """The engine's answer, split and counted."""
        try:
            body: dict[str, Any]
            body = decode(raw)
            choices = body["choices"]
        except (ValueError, KeyError, TypeError) as error:
            raise ApiError(
                502, "engine_error", "The engine answered with something unreadable. Tell your operator."
            ) from error
        body["model"] = self._target.name
        for choice in choices:
            self._record.finish_reason = choice.get("finish_reason") or ""
            if self._chat:
                self._split(choice["message"])
            self._keep(choice)
        self._share_out(body.get("usage"), choices)
        self._count(body.get("usage"))
        return body

    def _keep(self, choice: dict[str, Any]) -> None:
        if self._record.kept is None:
            return
        message = choice.get("message") or {"content": choice.get("text")}
        self._record.kept.add(choice.get("index", 0), message.get("content"), message.get("reasoning"))

    def _split(self, message: dict[str, Any]) -> None:
        """None says that there was no think block, "" that there was nothing in it."""
        reasoning = message.get("reasoning") or message.get("reasoning_content")
        content = message.get("content")
        if not reasoning and isinstance(content, str):
            splitter = ThinkSplitter(self._target.think, prompt_opens=self._prompt_opens)
            parts = [splitter.feed(content), splitter.finish()]
            message["content"] = "".join(part[1] for part in parts)
            reasoning = "".join(part[0] for part in parts) if splitter.had_block else None
        _put_reasoning(message, reasoning)

    def _share_out(self, usage: Any, choices: list[dict[str, Any]]) -> None:
        """Reasoning tokens by the share of characters, for want of a better count of a whole answer."""
        if not self._chat or not isinstance(usage, dict):
            return
        messages = [choice["message"] for choice in choices]
        thought = sum(len(message.get("reasoning") or "") for message in messages)
        said = sum(len(message.get("content") or "") for message in messages)
        if thought:
            self._record.reasoning_tokens = round(
                _count_of(usage.get("completion_tokens")) * thought / (thought + said)
            )


class StreamedAnswer(Answer):
    """A stream of server-sent events, rewritten as its bytes come in."""

    def __init__(self, request: InferenceRequest, target: Target, record: Record) -> None:
        super().__init__(request, target, record)
        self._rest = b""
        self._splitters: dict[int, ThinkSplitter | None] = {}
        self._tokens: dict[int, int] = {}
        self._reasoned: set[int] = set()
        """Choices of which some reasoning was sent."""
        self.ended = False
        """The engine said that the stream is complete, or sent an error, which was passed on."""

    @property
    def failed(self) -> bool:
        """The engine ended the stream with an error."""
        return bool(self._record.code)

    def feed(self, piece: bytes) -> bytes:
        """What to send on for one more piece of the engine's bytes; may be empty."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > _MAX_EVENT_BYTES:
            raise interrupted()
        return b"".join(self._events(lines))

    def _events(self, lines: Iterable[bytes]) -> Iterable[bytes]:
        for line in lines:
            if not line.startswith(b"data:"):
                continue  # blank lines and comments
            data = line[5:].strip()
            if data == _DONE:
                self.ended = True
            elif not self.ended and (event := self._event(data)) is not None:
                yield self._frame(event)

    def _frame(self, event: dict[str, Any]) -> bytes:
        return b"data: " + encode_any(event) + b"\n\n"

    def end(self) -> bytes:
        """The end of a stream that is complete."""
        return END_OF_STREAM

    def broken(self, error: ApiError) -> bytes:
        """The end of one that is not."""
        return b"data: " + error.body() + b"\n\n" + END_OF_STREAM

    def _event(self, data: bytes) -> dict[str, Any] | None:
        """One event for the app, or None when nothing is left of it."""
        try:
            event: dict[str, Any] = decode(data)
        except ValueError as error:
            raise interrupted() from error
        if "error" in event:
            self.ended = True
            status = event["error"].get("code") if isinstance(event["error"], dict) else None
            failure = engine_error(status if isinstance(status, int) else 500, data)
            self._record.code = failure.code
            return failure.payload()
        event["model"] = self._target.name
        choices = event.get("choices") or []
        usage = event.pop("usage", None)
        if not choices:
            self._count(usage)
            return {**event, "usage": usage} if self._request.wants_usage else None
        # A list, not a generator: every choice has to be looked at.
        worth_sending = any([self._rewrite_choice(choice) for choice in choices])
        self._count_so_far(choices, usage)
        if not worth_sending:
            return None
        if self._record.first_token_ms is None and any(_has_text(choice) for choice in choices):
            self._record.first_token_ms = self._record.elapsed_ms()
        if self._request.wants_usage:
            event["usage"] = None
        return event

    def _count_so_far(self, choices: list[dict[str, Any]], usage: Any) -> None:
        """Tokens up to this chunk: the engine counts each choice by itself, and all in the last chunk."""
        if isinstance(usage, dict):
            index = choices[0].get("index", 0)
            before = self._tokens.get(index, 0)
            self._tokens[index] = _count_of(usage.get("completion_tokens"))
            if self._is_thinking(index, choices[0]):
                self._record.reasoning_tokens += max(0, self._tokens[index] - before)
            self._count({**usage, "completion_tokens": sum(self._tokens.values())})
        elif self._record.escalation:
            self._record.completion_tokens += 1  # a remote service counts at the end only: a guess till then
            self._record.counted()

    def _is_thinking(self, index: int, choice: dict[str, Any]) -> bool:
        """The tokens of this chunk are reasoning; the chunk in which a block ends counts as answer."""
        splitter = self._splitters.get(index)
        if splitter is not None:
            return splitter.thinking
        delta = choice.get("delta") or {}
        return bool(delta.get("reasoning")) and not delta.get("content")

    def _rewrite_choice(self, choice: dict[str, Any]) -> bool:
        """Split the text of one choice in place; returns whether there is anything to send."""
        finish = choice.get("finish_reason")
        if finish:
            self._record.finish_reason = finish
        delta = choice.get("delta")
        kept = self._record.kept
        if not self._chat or not isinstance(delta, dict):
            if kept is not None:
                kept.add(choice.get("index", 0), choice.get("text"))
            return True
        reasoning, content = self._split(choice.get("index", 0), delta, finished=bool(finish))
        if kept is not None:
            kept.add(choice.get("index", 0), content, reasoning)
        if content or (delta.get("role") and not reasoning):
            delta["content"] = content
        else:
            delta.pop("content", None)
        if reasoning or (finish and self._had_empty_block(choice.get("index", 0))):
            _put_reasoning(delta, reasoning)
            self._reasoned.add(choice.get("index", 0))
        return bool(delta or finish or choice.get("logprobs"))

    def _had_empty_block(self, index: int) -> bool:
        """There was a think block and nothing in it: said once, at the end."""
        splitter = self._splitters.get(index)
        return index not in self._reasoned and splitter is not None and splitter.had_block

    def _split(self, index: int, delta: dict[str, Any], *, finished: bool) -> Split:
        content = delta.get("content") or ""
        native = delta.pop("reasoning", None) or delta.get("reasoning_content")
        delta.pop("reasoning_content", None)
        if index not in self._splitters:
            self._splitters[index] = ThinkSplitter(self._target.think, prompt_opens=self._prompt_opens)
        if native:
            self._splitters[index] = None  # this engine splits by itself
        splitter = self._splitters[index]
        if splitter is None:
            return native or "", content
        reasoning, answer = splitter.feed(content)
        if finished:
            last_reasoning, last_answer = splitter.finish()
            return reasoning + last_reasoning, answer + last_answer
        return reasoning, answer


def _has_text(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(
        choice.get("text") or delta.get("content") or delta.get("reasoning") or delta.get("tool_calls")
    )
