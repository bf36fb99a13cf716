"""Reasoning on or off, for bases that can do both: as the version was trained, unless the app says otherwise.

An app says so by `reasoning_effort` (`none` is off, any other is on), or by the base's own words in its
system message. A base without an adapter does as it does by itself.
"""

from typing import Any

from stillhouse.gateway.requests import Body, InferenceRequest
from stillhouse.gateway.routing import Target
from workers.contract import ThinkContract

_OFF = "none"


def for_engine(request: InferenceRequest, target: Target) -> bytes:
    """The body for the engine that answers as `target`."""
    return request.upstream_body(target.name, _switched(request, target))


def _switched(request: InferenceRequest, target: Target) -> Body:
    """The fields that turn reasoning on or off; none for raw prompts, which no template renders."""
    think, effort = target.think, request.body.get("reasoning_effort")
    if request.endpoint != "chat/completions" or think.switch == "none":
        return {}
    wanted = target.reasons if effort is None else effort != _OFF
    if wanted is None:
        return {}
    changes: Body = {} if effort is None else {"reasoning_effort": None}
    if think.switch == "template_flag":
        return {**changes, "chat_template_kwargs": {"enable_thinking": wanted}}
    return {**changes, "messages": _with_words(request.body["messages"], think, wanted=wanted)}


def _with_words(messages: list[Body], think: ThinkContract, *, wanted: bool) -> list[Body]:
    """The words first in the system message, as training wrote them; the app's own words win."""
    has_system = messages[0]["role"] == "system"
    own = _text(messages[0]["content"]) if has_system else ""
    if any(words and words in own for words in (think.switch_on, think.switch_off)):
        return messages
    words = think.switch_on if wanted else think.switch_off
    if not words:
        return messages
    system = {**(messages[0] if has_system else {"role": "system"}), "content": f"{words}\n\n{own}".strip()}
    return [system, *messages[1:]] if has_system else [system, *messages]


def _text(content: Any) -> str:
    """Of a message; parts are joined as the engine would."""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text") or part.get("refusal") or "" for part in content)
