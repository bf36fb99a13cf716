"""How likely an answer from here is right: the engine is asked for log-probabilities, which an app that did
not ask for them never sees."""

import json
from dataclasses import dataclass, replace
from typing import Any

from stillhouse.gateway.requests import Body, InferenceRequest
from stillhouse.gateway.routing import Target
from workers.contract import Calibration, sureness

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

    def asked_of(self, request: InferenceRequest) -> InferenceRequest:
        """The request for the engine."""
        return replace(request, body={**request.body, "logprobs": True, "top_logprobs": max(_TOP, self.top)})

    def whole(self, raw: bytes) -> tuple[bytes, float | None]:
        """The answer as the app asked for it, and the probability that it is right; None: unknown."""
        try:
            body = json.loads(raw)
            (choice,) = body["choices"]
            content, called = _content(choice), bool((choice.get("message") or {}).get("tool_calls"))
            self._strip(choice)
        except (ValueError, LookupError, TypeError, AttributeError):
            return raw, None
        return _dumped(body), self._confidence(content, called)

    def stream(self, raw: bytes) -> tuple[bytes, float | None]:
        """The same of a whole stream."""
        lines: list[bytes] = []
        content: list[dict[str, Any]] = []
        called = False
        for line in raw.split(b"\n"):
            data = line.removeprefix(b"data:").strip()
            if not line.startswith(b"data:") or not data.startswith(b"{"):
                lines.append(line)
                continue
            try:
                body = json.loads(data)
                for choice in body.get("choices") or []:
                    content += _content(choice)
                    called = called or bool((choice.get("delta") or {}).get("tool_calls"))
                    self._strip(choice)
            except (ValueError, LookupError, TypeError, AttributeError):
                lines.append(line)
                continue
            lines.append(b"data: " + _dumped(body))
        return b"\n".join(lines), self._confidence(content, called)

    def _confidence(self, content: list[dict[str, Any]], called: bool) -> float | None:
        if called or not content:
            return None
        try:
            return self.calibration.confidence(sureness(content))
        except (LookupError, TypeError, ValueError, OverflowError):
            return None

    def _strip(self, choice: Body) -> None:
        if not self.asked or not choice.get("logprobs"):
            choice["logprobs"] = None
            return
        shown = [{**entry, "top_logprobs": entry["top_logprobs"][: self.top]} for entry in _content(choice)]
        choice["logprobs"] = {**choice["logprobs"], "content": shown}


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
    return Doubt(target.calibration, escalation.threshold, asked, top)


def _content(choice: Body) -> list[dict[str, Any]]:
    """Copies: what the app does not see is taken out of the choice."""
    return [dict(entry) for entry in (choice.get("logprobs") or {}).get("content") or []]


def _dumped(body: Body) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
