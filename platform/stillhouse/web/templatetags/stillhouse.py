"""Small words for templates: icons, states, numbers for people."""

import json
import re
from collections.abc import Mapping
from typing import Any

from django import template
from django.templatetags.static import static
from django.utils.html import format_html
from django.utils.safestring import SafeString

from workers.contract import ThinkContract

register = template.Library()

TONES: Mapping[str, str] = {
    "succeeded": "state-good",
    "approved": "state-good",
    "ready": "state-good",
    "available": "state-good",
    "serving": "state-good",
    "running": "state-busy",
    "loading": "state-busy",
    "queued": "state-wait",
    "draining": "state-wait",
    "too old": "state-bad",
    "in trouble": "state-bad",
    "paused": "state-wait",
    "candidate": "state-wait",
    "waiting": "state-wait",
    "failed": "state-bad",
    "quarantined": "state-bad",
    "confirmed": "state-wait",
    "searching": "state-busy",
    "rejected": "state-bad",
    "revoked": "state-bad",
    "cancelled": "",
    "retired": "",
}


@register.simple_tag
def icon(name: str, classes: str = "size-5") -> SafeString:
    """An icon of the sprite. Decorative: the words beside it carry the meaning."""
    return format_html(
        '<svg class="{}" aria-hidden="true" focusable="false"><use href="{}#{}"></use></svg>',
        classes,
        static("web/vendor/icons.svg"),
        name,
    )


@register.simple_tag
def state(name: str, label: str = "") -> SafeString:
    """A state as a coloured word; the word alone says it too."""
    return format_html('<span class="state {}">{}</span>', TONES.get(name, ""), label or name)


@register.filter
def short(digest: str) -> str:
    """The first twelve characters of a digest."""
    return digest[:12]


@register.filter
def duration(seconds: float | None) -> str:
    """Seconds as a person says them: `48 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds is None:
        return "–"
    whole = max(0, round(float(seconds)))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest and minutes < 10 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


@register.filter
def milliseconds(value: float | None) -> str:
    """Milliseconds as a person says them: `240 ms`, `4.5 s`."""
    if value is None:
        return "–"
    return f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.1f} s"


@register.filter
def about_time(seconds: float) -> str:
    """Seconds as an estimate says them, no finer than it can know: `40 s`, `12 min`, `2.5 h`."""
    if seconds < 90:
        return f"{max(10, round(seconds / 10) * 10)} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f}".removesuffix(".0") + " h"


@register.filter
def gib(size: int) -> str:
    """Bytes as GiB without the unit: `1.5`, `18`."""
    whole = size / 1024**3
    return f"{whole:.1f}" if whole < 10 else f"{whole:.0f}"


@register.filter
def parameters(count: int) -> str:
    """8190735360 as `8.2 B`, 134515008 as `135 M`."""
    if count >= 1_000_000_000:
        return f"{count / 1e9:.1f} B".replace(".0 ", " ")
    return f"{count / 1e6:.0f} M"


@register.filter
def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * float(share):.0f} %"


@register.filter
def share_of(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"


@register.filter
def number(value: float | None, digits: int = 3) -> str:
    """A float with a few digits, without a tail of zeros."""
    if value is None:
        return "–"
    text = f"{float(value):.{digits}f}".rstrip("0").rstrip(".")
    return text or "0"


THINK = re.compile(r"^\s*<think>(?P<reasoning>.*?)</think>\s*(?P<answer>.*)$", re.DOTALL)


@register.filter
def spoken(message: Mapping[str, Any]) -> dict[str, Any]:
    """A chat message taken apart for a bubble: role, reasoning, answer, calls of tools in words."""
    content = str(message.get("content") or "")
    reasoning = str(message.get("reasoning_content") or message.get("reasoning") or "")
    if not reasoning and (found := THINK.match(content)):
        reasoning, content = found["reasoning"], found["answer"]
    return {
        "role": str(message.get("role", "")),
        "reasoning": reasoning.strip(),
        "content": content.strip(),
        "calls": [_call(call) for call in message.get("tool_calls") or []],
    }


def _call(call: Mapping[str, Any]) -> str:
    """A call as OpenAI writes it, or flat as our rows keep it."""
    function = call.get("function") or call
    arguments = function.get("arguments") or {}
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return f"{function.get('name', '')}({arguments})"


@register.filter
def setting(value: Any) -> str:
    """A TrainSpec value as it is written: lists by commas, floats without noise."""
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value in (None, "") else str(value)


@register.filter
def thinking(contract: ThinkContract) -> str:
    """How a base reasons, in a few words."""
    if contract.family == "plain":
        return "learned from your data, as ordinary text"
    switch = {
        "none": "always",
        "template_flag": "on or off per request",
        "system_prompt": "switched by the instruction",
    }
    return switch[contract.switch]


@register.filter
def jsonlist(value: Any) -> str:
    """For a data attribute that a script reads; the template escapes it."""
    return json.dumps(value)
