"""Answers of `POST /v1/responses`: a response object, or the events that build one."""

from time import time
from typing import Any

from stillhouse.core.ids import new_id
from stillhouse.gateway.answers import StreamedAnswer, WholeAnswer
from stillhouse.gateway.errors import ApiError
from stillhouse.gateway.fastjson import encode_any
from stillhouse.gateway.requests import Body, InferenceRequest
from stillhouse.gateway.routing import Target
from stillhouse.gateway.usage import Record

_CUT_OFF = {"length": "max_output_tokens", "content_filter": "content_filter"}


class Response:
    """One response object as it grows. Items are in the order in which they began."""

    def __init__(self, request: InferenceRequest, target: Target, record: Record) -> None:
        self._echo = request.echo or {}
        self._target, self._record = target, record
        self._created = int(time())
        self.items: list[Body] = []

    def body(self, status: str, error: ApiError | None = None) -> Body:
        ended = status in ("completed", "incomplete")
        reason = _CUT_OFF.get(self._record.finish_reason)
        return {
            "id": self._record.id.replace("req_", "resp_", 1),
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": {"code": "server_error", "message": error.message} if error else None,
            "incomplete_details": {"reason": reason} if ended and reason else None,
            "model": self._target.name,
            "output": self.items,
            "usage": self._usage() if ended else None,
            **self._echo,
        }

    @property
    def final_status(self) -> str:
        return "incomplete" if self._record.finish_reason in _CUT_OFF else "completed"

    def begin(self, kind: str, call: Body | None = None) -> Body:
        """A new item, still empty, at the end of the list."""
        item: Body = {"id": new_id({"reasoning": "rs", "message": "msg"}.get(kind, "fc")), "type": kind}
        if kind == "reasoning":
            item |= {"summary": [], "content": []}
        elif kind == "message":
            item |= {"role": "assistant", "content": []}
        else:
            function = (call or {}).get("function") or {}
            known = (call or {}).get("id") or new_id("call")
            item |= {"call_id": known, "name": function.get("name") or "", "arguments": ""}
        item["status"] = "in_progress"
        self.items.append(item)
        return item

    def _usage(self) -> Body:
        record = self._record
        return {
            "input_tokens": record.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": record.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": record.reasoning_tokens},
            "total_tokens": record.tokens,
        }


def part_of(kind: str, text: str) -> Body:
    """The one part of a reasoning or message item."""
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


class WholeResponse(WholeAnswer):
    """A response in one piece."""

    def __init__(self, request: InferenceRequest, target: Target, record: Record) -> None:
        super().__init__(request, target, record)
        self._response = Response(request, target, record)

    def rewrite(self, raw: bytes) -> bytes:
        message = self.read(raw)["choices"][0]["message"]
        response = self._response
        for kind, text in (("reasoning", message.get("reasoning")), ("message", message.get("content"))):
            if text:
                response.begin(kind)["content"] = [part_of(kind, text)]
        for call in message.get("tool_calls") or []:
            response.begin("function_call", call)["arguments"] = call["function"].get("arguments") or ""
        status = response.final_status
        for item in response.items:
            item["status"] = "completed"
        if response.items:
            response.items[-1]["status"] = status
        return encode_any(response.body(status))


class StreamedResponse(StreamedAnswer):
    """A response as its events; one item is open at a time."""

    def __init__(self, request: InferenceRequest, target: Target, record: Record) -> None:
        super().__init__(request, target, record)
        self._response = Response(request, target, record)
        self._number = 0
        self._open: Body | None = None
        self._open_call: int | None = None
        """The engine's index of the open function call."""
        self._text = ""
        """Of the open item, so far."""
        self._failed = False

    def _frame(self, event: dict[str, Any]) -> bytes:
        """The events for one chunk of the chat answer, which `StreamedAnswer` has rewritten."""
        frames = self._begin()
        if "error" in event:
            return frames + self._fail(event["error"]["code"], event["error"]["message"])
        for choice in event.get("choices") or []:
            delta = choice.get("delta") or {}
            if delta.get("reasoning"):
                frames += self._add("reasoning", delta["reasoning"])
            if delta.get("content"):
                frames += self._add("message", delta["content"])
            for call in delta.get("tool_calls") or []:
                frames += self._add_call(call)
        return frames

    def end(self) -> bytes:
        if self._failed:
            return b""
        status = self._response.final_status
        frames = self._begin() + self._close(status)
        return frames + self._say(f"response.{status}", response=self._response.body(status))

    def broken(self, error: ApiError) -> bytes:
        return self._begin() + self._fail(error.code, error.message)

    def _say(self, kind: str, **fields: Any) -> bytes:
        body = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + encode_any(body) + b"\n\n"

    def _begin(self) -> bytes:
        if self._number:
            return b""
        frames = self._say("response.created", response=self._response.body("in_progress"))
        return frames + self._say("response.in_progress", response=self._response.body("in_progress"))

    def _fail(self, code: str, message: str) -> bytes:
        self._failed = True
        error = ApiError(502, code, message)
        frames = self._say("error", code=code, message=message, param=None)
        return frames + self._say("response.failed", response=self._response.body("failed", error))

    def _place(self) -> Body:
        """Where the open item is."""
        assert self._open is not None
        place: Body = {"item_id": self._open["id"], "output_index": len(self._response.items) - 1}
        return place if self._open["type"] == "function_call" else place | {"content_index": 0}

    def _add(self, kind: str, text: str) -> bytes:
        frames = b""
        if self._open is None or self._open["type"] != kind:
            frames = self._close() + self._start(kind)
            frames += self._say("response.content_part.added", **self._place(), part=part_of(kind, ""))
        self._text += text
        if kind == "reasoning":
            return frames + self._say("response.reasoning_text.delta", **self._place(), delta=text)
        return frames + self._say("response.output_text.delta", **self._place(), delta=text, logprobs=[])

    def _add_call(self, call: Body) -> bytes:
        frames = b""
        if self._open is None or self._open_call != call.get("index"):
            frames = self._close() + self._start("function_call", call)
            self._open_call = call.get("index")
        text = (call.get("function") or {}).get("arguments") or ""
        if not text:
            return frames
        self._text += text
        return frames + self._say("response.function_call_arguments.delta", **self._place(), delta=text)

    def _start(self, kind: str, call: Body | None = None) -> bytes:
        self._open = self._response.begin(kind, call)
        index = len(self._response.items) - 1
        return self._say("response.output_item.added", output_index=index, item=self._open)

    def _close(self, status: str = "completed") -> bytes:
        item, text, place = self._open, self._text, self._place() if self._open else {}
        if item is None:
            return b""
        item["status"] = status
        if item["type"] == "function_call":
            item["arguments"] = text
            frames = self._say("response.function_call_arguments.done", **place, arguments=text)
        else:
            part = part_of(item["type"], text)
            item["content"] = [part]
            if item["type"] == "reasoning":
                frames = self._say("response.reasoning_text.done", **place, text=text)
            else:
                frames = self._say("response.output_text.done", **place, text=text, logprobs=[])
            frames += self._say("response.content_part.done", **place, part=part)
        self._open, self._open_call, self._text = None, None, ""
        index = len(self._response.items) - 1
        return frames + self._say("response.output_item.done", output_index=index, item=item)
