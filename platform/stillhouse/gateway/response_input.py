"""`POST /v1/responses`, as far as it is a question and an answer, read as the chat request it amounts to.

The engine has an endpoint of this name, too. It is not used: it counts tokens in the last event of a stream
only, so a stream that an app leaves would be missing from the ledger, and it renders items by rules of its
own, where chat messages are rendered by the template that the adapters were trained with.
"""

from typing import Any

from stillhouse.gateway.errors import ApiError, invalid
from stillhouse.gateway.messages import MEDIA_PARTS
from stillhouse.gateway.requests import (
    CHAT_FIELDS,
    Body,
    InferenceRequest,
    check_fields,
    is_constrained,
    read_json,
    take_flag,
)
from stillhouse.gateway.routing import check_name

_MAX_ITEMS = 4096
_TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_ROLES = ("system", "developer", "user", "assistant")
_STATELESS = "Nothing of a conversation is kept here: send the earlier items in `input`."
_REFUSED = {
    "background": "Answers are given at once, or as a stream.",
    "conversation": _STATELESS,
    "previous_response_id": _STATELESS,
    "prompt": "Prompts are not stored here: send the text in `instructions` and `input`.",
    "context_management": "Nothing is ever cut from a request.",
    "max_tool_calls": "Tools are called by the app, so the app counts.",
    "top_logprobs": "Log-probabilities are given by /v1/chat/completions.",
}
_AS_IN_CHAT = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "user",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "parallel_tool_calls",
    "structured_outputs",
)
_WITHOUT_EFFECT = frozenset(
    {
        "include",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "stream_options",
    }
)


def parse_response_request(raw: bytes) -> InferenceRequest:
    """The chat request that `raw` amounts to; its `echo` is what the answer repeats. Raises ApiError 400."""
    sent = {name: value for name, value in read_json(raw).items() if value is not None}
    model = check_name(sent.pop("model", None))
    stream = take_flag(sent, "stream")
    _refuse(sent)
    echo = _echo(sent)
    messages = _messages(sent.pop("instructions", None), sent.pop("input", None))
    body: Body = {"model": model, "messages": messages}
    body |= {name: sent.pop(name) for name in _AS_IN_CHAT if name in sent}
    if "max_output_tokens" in sent:
        body["max_completion_tokens"] = sent.pop("max_output_tokens")
    body |= _reasoning(sent.pop("reasoning", {})) | _text(sent.pop("text", {})) | _tools(sent)
    sent.pop("metadata", None)
    for name in sent:
        if name not in _WITHOUT_EFFECT:
            raise _unknown(name, "It is no field of this endpoint.")
    check_fields(body, CHAT_FIELDS)
    if stream:
        body["stream"] = True
    return InferenceRequest(
        endpoint="chat/completions",
        model=model,
        stream=stream,
        wants_usage=False,
        constrained=is_constrained(body),
        body=body,
        echo=echo,
    )


def _unknown(name: str, reason: str) -> ApiError:
    name = name[:80]
    return invalid(name, f"The field `{name}` is not accepted. {reason} Remove it.", code="unknown_parameter")


def _refuse(sent: Body) -> None:
    for name, reason in _REFUSED.items():
        if sent.get(name) not in (None, False):
            raise _unknown(name, reason)
        sent.pop(name, None)
    if sent.pop("truncation", "disabled") != "disabled":
        raise invalid("truncation", "Nothing is ever cut here: `truncation` is disabled. Send fewer items.")


def _echo(sent: Body) -> Body:
    """The fields of a response object that say what was asked for."""
    return {
        "instructions": sent.get("instructions"),
        "max_output_tokens": sent.get("max_output_tokens"),
        "metadata": sent.get("metadata", {}),
        "parallel_tool_calls": sent.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "reasoning": sent.get("reasoning", {"effort": None, "summary": None}),
        "store": False,
        "background": False,
        "temperature": sent.get("temperature"),
        "text": sent.get("text", {"format": {"type": "text"}}),
        "tool_choice": sent.get("tool_choice", "auto"),
        "tools": sent.get("tools", []),
        "top_p": sent.get("top_p"),
        "truncation": "disabled",
        "user": sent.get("user"),
    }


# ---- items


def _messages(instructions: Any, given: Any) -> list[Body]:
    if given is None:
        raise invalid("input", "Send `input`: a text, or a list of items.", code="missing_required_parameter")
    messages: list[Body] = []
    if instructions is not None:
        if not isinstance(instructions, str):
            raise invalid("instructions", "`instructions` must be text.")
        messages.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not isinstance(given, list) or not 0 < len(given) <= _MAX_ITEMS:
        raise invalid("input", f"`input` must be a text, or a list of 1 to {_MAX_ITEMS} items.")
    for index, item in enumerate(given):
        _add_item(messages, f"input[{index}]", item)
    return messages


def _add_item(messages: list[Body], place: str, item: Any) -> None:
    if not isinstance(item, dict):
        raise invalid(place, f"`{place}` must be an object.")
    kind = item.get("type", "message")
    if kind == "message":
        _add_message(messages, place, item)
    elif kind == "reasoning":
        # What history keeps of it is for the template to say: it reads it with the assistant's next message.
        text = "".join(_parts(f"{place}.content", item.get("content") or [], {"reasoning_text": "text"}))
        messages.append({"role": "assistant", "reasoning": text})
    elif kind == "function_call":
        _add_call(messages, place, item)
    elif kind == "function_call_output":
        output = item.get("output")
        text = output if isinstance(output, str) else "".join(_parts(f"{place}.output", output, _TEXT_PARTS))
        call = _string(place, item, "call_id")
        messages.append({"role": "tool", "tool_call_id": call, "content": text})
    else:
        raise invalid(place, f"`{place}` has a type that is not known here: {str(kind)[:40]}. {_STATELESS}")


def _add_message(messages: list[Body], place: str, item: Body) -> None:
    role, content = item.get("role"), item.get("content")
    if role not in _ROLES:
        raise invalid(f"{place}.role", f"`{place}.role` must be one of {', '.join(_ROLES)}.")
    role = "system" if role == "developer" else role
    text = content if isinstance(content, str) else "".join(_parts(f"{place}.content", content, _TEXT_PARTS))
    open_turn = _open_turn(messages) if role == "assistant" else None
    if open_turn is None or "content" in open_turn:
        messages.append(open_turn := {"role": role})
    open_turn["content"] = text


def _add_call(messages: list[Body], place: str, item: Body) -> None:
    call = {
        "id": _string(place, item, "call_id"),
        "type": "function",
        "function": {
            "name": _string(place, item, "name"),
            "arguments": _string(place, item, "arguments"),
        },
    }
    open_turn = _open_turn(messages)
    if open_turn is None:
        messages.append(open_turn := {"role": "assistant"})
    open_turn.setdefault("tool_calls", []).append(call)


def _open_turn(messages: list[Body]) -> Body | None:
    """The assistant's turn that the next item of the assistant belongs to: reasoning, text and calls are
    items here, and one message there."""
    last = messages[-1] if messages else None
    return last if last is not None and last["role"] == "assistant" else None


def _parts(place: str, parts: Any, kinds: dict[str, str]) -> list[str]:
    if not isinstance(parts, list):
        raise invalid(place, f"`{place}` must be text, or a list of text parts.")
    return [_part(f"{place}[{number}]", part, kinds) for number, part in enumerate(parts)]


def _part(place: str, part: Any, kinds: dict[str, str]) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in MEDIA_PARTS:
        raise ApiError(
            400,
            "media_not_supported",
            f"`{place}` is a part of type {kind}. Only text is served here, "
            "and nothing is fetched from URLs. Remove the part.",
            param=place,
        )
    text = part.get(kinds[kind]) if kind in kinds else None
    if not isinstance(text, str):
        raise invalid(place, f'`{place}` must be {{"type": "{next(iter(kinds))}", "text": ...}}.')
    return text


def _string(place: str, item: Body, name: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise invalid(f"{place}.{name}", f"`{place}.{name}` must be text.")
    return value


# ---- settings


def _reasoning(settings: Any) -> Body:
    if not isinstance(settings, dict):
        raise invalid("reasoning", "`reasoning` must be an object.")
    return {"reasoning_effort": settings["effort"]} if settings.get("effort") is not None else {}


def _text(settings: Any) -> Body:
    wanted = settings.get("format") if isinstance(settings, dict) else settings
    if wanted is None:
        return {}
    if not isinstance(wanted, dict):
        raise invalid("text.format", "`text.format` must be an object with a type.")
    if wanted.get("type") != "json_schema":
        return {"response_format": wanted}
    schema = {name: wanted[name] for name in ("name", "schema", "strict", "description") if name in wanted}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _tools(sent: Body) -> Body:
    tools, choice = sent.pop("tools", None), sent.pop("tool_choice", None)
    body: Body = {}
    if tools:
        if not isinstance(tools, list):
            raise invalid("tools", "`tools` must be a list.")
        body["tools"] = [_tool(f"tools[{index}]", tool) for index, tool in enumerate(tools)]
        if isinstance(choice, dict) and choice.get("type") == "function":
            choice = {"type": "function", "function": {"name": _string("tool_choice", choice, "name")}}
        if choice is not None:
            body["tool_choice"] = choice
    return body


def _tool(place: str, tool: Any) -> Body:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind != "function":
        raise invalid(
            place,
            f"`{place}` is a tool of type {str(kind)[:40]}. Send functions, which your app calls itself.",
        )
    names = ("name", "description", "parameters", "strict")
    function = {name: tool[name] for name in names if tool.get(name) is not None}
    return {"type": "function", "function": function}
