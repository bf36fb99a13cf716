"""How likely an answer from here is right: the engine is asked for log-probabilities, which an app that did
not ask for them never sees."""

from dataclasses import dataclass, replace
from typing import Any

from stillhouse.gateway.fastjson import decode, encode_any
from stillhouse.gateway.requests import Body, InferenceRequest
from stillhouse.gateway.routing import Target
from stillhouse.gateway.think import split_text
from workers.contract import Calibration, ThinkContract, sureness

CONFIDENCE = "confidence"
_TOP = 2


@dataclass(frozen=True, slots=True)
class Doubt:
    """Of one request's answer."""

    calibration: Calibration
    threshold: float
    asked: bool
    """The app wants log-probabilities itself,"""
    top: int
    """with so many alternatives for each token."""
    think: ThinkContract
    prompt_opens: bool
    """The answer begins inside a think block."""

    def asked_of(self, request: InferenceRequest) -> InferenceRequest:
        """The request for the engine."""
        return replace(request, body={**request.body, "logprobs": True, "top_logprobs": max(_TOP, self.top)})

    def whole(self, raw: bytes) -> tuple[bytes, float | None]:
        """The answer as the app asked for it, and the probability that it is right; None: unknown."""
        heard = Heard(self)
        try:
            body = decode(raw)
            (choice,) = body["choices"]
            heard.take(choice, choice["message"])
        except (ValueError, LookupError, TypeError, AttributeError):
            return raw, None
        return encode_any(body), heard.confidence()

    def confidence(self, content: list[dict[str, Any]], text: str, *, split: bool) -> float | None:
        """`text` is what was said, its reasoning included unless the engine has `split` it off.

        An answer that is not there, as when the reasoning was cut off, is as sure as one without a margin.
        """
        if not content:
            return None
        said = text if split else split_text(self.think, text, prompt_opens=self.prompt_opens)[1]
        try:
            return self.calibration.confidence(sureness(content if said.strip() else []))
        except (LookupError, TypeError, ValueError, OverflowError):
            return None

    def strip(self, choice: Body) -> None:
        """Take out what the app did not ask for, in place."""
        if not self.asked or not choice.get("logprobs"):
            choice["logprobs"] = None
            return
        shown = [{**entry, "top_logprobs": entry["top_logprobs"][: self.top]} for entry in _content(choice)]
        choice["logprobs"] = {**choice["logprobs"], "content": shown}


class Heard:
    """What one answer has said so far, whole or piece by piece."""

    def __init__(self, doubt: Doubt) -> None:
        self._doubt = doubt
        self._content: list[dict[str, Any]] = []
        self._text: list[str] = []
        self._split = self._called = False
        self._rest = b""

    def feed(self, piece: bytes) -> bytes:
        """The whole lines of a stream so far, as the app asked for them."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        return b"".join(self._line(line) + b"\n" for line in lines)

    def finish(self) -> bytes:
        """The last line, where the stream ended in the middle of one."""
        return self._line(self._rest)

    def take(self, choice: Body, said: Body) -> None:
        """One choice, or one chunk of it, and its message or delta; stripped in place."""
        self._content += _content(choice)
        self._text.append(said.get("content") or "")
        self._split = self._split or bool(said.get("reasoning") or said.get("reasoning_content"))
        self._called = self._called or bool(said.get("tool_calls"))
        self._doubt.strip(choice)

    def confidence(self) -> float | None:
        """Probability that the answer is right; None: unknown, as for the call of a tool."""
        if self._called:
            return None
        return self._doubt.confidence(self._content, "".join(self._text), split=self._split)

    def _line(self, line: bytes) -> bytes:
        data = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or not data.startswith(b"{"):
            return line
        try:
            body = decode(data)
            for choice in body.get("choices") or []:
                self.take(choice, choice.get("delta") or {})
        except (ValueError, LookupError, TypeError, AttributeError):
            return line
        return b"data: " + encode_any(body)


def doubt_of(request: InferenceRequest, target: Target) -> Doubt | None:
    """None where confidence decides nothing: it is no reason here, the version has no calibration, or the app
    wants several answers."""
    escalation = target.escalation
    if escalation is None or CONFIDENCE not in escalation.reasons or target.calibration is None:
        return None
    if request.endpoint != "chat/completions" or request.body.get("n", 1) != 1:
        return None
    asked = bool(request.body.get("logprobs"))
    top = int(request.body.get("top_logprobs") or 0) if asked else 0
    opens = target.think.prompt_opens and not request.constrained
    return Doubt(target.calibration, escalation.threshold, asked, top, target.think, opens)


def _content(choice: Body) -> list[dict[str, Any]]:
    """Copies: what the app does not see is taken out of the choice."""
    return [dict(entry) for entry in (choice.get("logprobs") or {}).get("content") or []]
