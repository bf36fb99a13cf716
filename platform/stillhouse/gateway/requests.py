"""What an app may send: read fully, checked field by field, and made into the body the engine gets.

Only known fields go on to the engine. What is refused is refused with its reason: an engine that silently
ignores a field, or one that obeys a field meant for its administrator, is worse than an error.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

from stillhouse.gateway.errors import invalid
from stillhouse.gateway.fastjson import decode, encode
from stillhouse.gateway.grammars import check_grammar
from stillhouse.gateway.messages import check_messages
from stillhouse.gateway.routing import check_name

Endpoint = Literal["chat/completions", "completions"]
Body = dict[str, Any]
Check = Callable[[str, Any], None]

MAX_CHOICES = 8
_MAX_PROMPTS = 32
_MAX_STOPS = 16
_MAX_TOOLS = 128
_TOKEN_IDS = 2**31
"""None is larger: engines keep them as 32 bits."""
_MAX_BIASES = 1024
_MAX_TOKEN_IDS = 4096
_MAX_BAD_WORDS = 128
"""Engines look at each of these at every step of a batch, which other requests are in."""


@dataclass(slots=True)
class InferenceRequest:
    """A checked request."""

    endpoint: Endpoint
    model: str
    """As the app asked."""
    stream: bool
    wants_usage: bool
    """The app asked for the usage chunk at the end of the stream."""
    constrained: bool
    """The output has to fit a grammar from its first token, so it cannot begin inside a think block."""
    body: Body
    """For the engine; `model` is still to be replaced by the name of what answers."""
    echo: Body | None = None
    """Of a request to /v1/responses: what the answer repeats of it. None for the other endpoints."""

    @property
    def user(self) -> str:
        """The app's own user, as it names them."""
        return str(self.body.get("user", ""))

    def copy(self) -> "InferenceRequest":
        """The same request for a whole answer, to be sent to something else."""
        body = {name: value for name, value in self.body.items() if name not in ("stream", "stream_options")}
        return replace(self, body=body, stream=False, wants_usage=False)

    def upstream_body(self, model: str, changes: Body | None = None) -> bytes:
        """JSON for the engine, which is asked for `model`; `changes` are fields for it alone."""
        self.body["model"] = model
        if self.stream:
            # Asked for in every chunk, so that a stream that is cut short is counted too.
            self.body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        try:
            return encode(self.body | (changes or {}))
        except UnicodeEncodeError as error:
            raise invalid(
                None,
                "A text has half a surrogate pair (\\ud800 to \\udfff): it is not Unicode.",
                code="invalid_unicode",
            ) from error


def parse_request(endpoint: Endpoint, raw: bytes) -> InferenceRequest:
    """The request in `raw`; raises ApiError 400 that names the field and what to do."""
    body = {name: value for name, value in read_json(raw).items() if value is not None}
    model = check_name(body.get("model"))
    stream = take_flag(body, "stream")
    options = body.pop("stream_options", None)
    if options is not None and (not stream or not isinstance(options, dict)):
        raise invalid("stream_options", "`stream_options` is an object, and goes with `stream: true` only.")
    check_fields(body, CHAT_FIELDS if endpoint == "chat/completions" else _COMPLETION_FIELDS)
    if endpoint == "chat/completions":
        check_messages(body.get("messages"))
    elif "prompt" not in body:
        raise invalid(
            "prompt", "Send `prompt`: a text, or a list of texts.", code="missing_required_parameter"
        )
    if stream:
        body["stream"] = True
    return InferenceRequest(
        endpoint=endpoint,
        model=model,
        stream=stream,
        wants_usage=bool(options and options.get("include_usage")),
        constrained=is_constrained(body),
        body=body,
    )


def read_json(raw: bytes) -> Body:
    """The JSON object in `raw`; raises ApiError 400."""
    try:
        body = decode(raw, _read_strictly)
    except UnicodeDecodeError as error:
        raise invalid(
            None, f"The body is not UTF-8: byte {error.start} cannot be read.", code="invalid_encoding"
        ) from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise invalid(None, f"The body is not JSON: {error.msg} at {where}.", code="invalid_json") from error
    except (RecursionError, ValueError) as error:
        raise invalid(
            None, "The body is nested too deeply or has a number too long.", code="invalid_json"
        ) from error
    if not isinstance(body, dict):
        raise invalid(
            None, "The body must be a JSON object with `model` and `messages`.", code="invalid_json"
        )
    return body


def _refuse_constant(name: str) -> NoReturn:
    raise invalid(None, f"The body is not JSON: it has no value {name}.", code="invalid_json")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)


def _read_strictly(raw: bytes) -> Any:
    return _decoder.decode(raw.decode("utf-8"))


def take_flag(body: Body, name: str) -> bool:
    """A flag, taken out of the body; False where it is not there."""
    value = body.pop(name, False)
    if not isinstance(value, bool):
        raise invalid(name, f"`{name}` is true or false.")
    return value


def is_constrained(body: Body) -> bool:
    """Whether the output has to fit a grammar."""
    kind = body.get("response_format", {}).get("type")
    return kind in ("json_object", "json_schema") or "structured_outputs" in body


def check_fields(body: Body, fields: Mapping[str, Check]) -> None:
    """Check every field by its rule, drop those that mean nothing here, refuse the rest."""
    for name in list(body):
        if name in _DROPPED:
            del body[name]
        elif check := fields.get(name):
            check(name, body[name])
        else:
            reason = _REFUSED.get(name) or "It is no field of this endpoint."
            raise invalid(
                name[:80],
                f"The field `{name[:80]}` is not accepted. {reason} Remove it.",
                code="unknown_parameter",
            )


# ---- rules of single fields


def _anything(name: str, value: Any) -> None:
    """Checked elsewhere, or by the engine."""


def _number(low: float, high: float) -> Check:
    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise invalid(name, f"`{name}` must be a number from {low:g} to {high:g}.")

    return check


def _integer(low: int, high: int) -> Check:
    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise invalid(name, f"`{name}` must be a whole number from {low} to {high}.")

    return check


def _boolean(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise invalid(name, f"`{name}` is true or false.")


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise invalid(name, f"`{name}` must be text.")


def _object(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise invalid(name, f"`{name}` must be an object.")


def _biases(name: str, value: Any) -> None:
    if (
        not isinstance(value, dict)
        or len(value) > _MAX_BIASES
        or not all(key.isascii() and key.isdigit() and len(key) < 10 for key in value)
    ):
        raise invalid(name, f"`{name}` must be an object of at most {_MAX_BIASES} token ids.")
    for bias in value.values():
        _number(-100, 100)(name, bias)


def _token_ids(name: str, value: Any) -> None:
    if value != [] and (not _is_ids(value) or len(value) > _MAX_TOKEN_IDS):
        raise invalid(name, f"`{name}` must be a list of at most {_MAX_TOKEN_IDS} token ids.")


def _bad_words(name: str, value: Any) -> None:
    if (
        not isinstance(value, list)
        or len(value) > _MAX_BAD_WORDS
        or not all(isinstance(word, str) and word for word in value)
    ):
        raise invalid(name, f"`{name}` must be a list of at most {_MAX_BAD_WORDS} texts.")


def _stop(name: str, value: Any) -> None:
    texts = [value] if isinstance(value, str) else value
    if (
        not isinstance(texts, list)
        or len(texts) > _MAX_STOPS
        or not all(isinstance(text, str) for text in texts)
    ):
        raise invalid(name, f"`stop` must be a text or a list of at most {_MAX_STOPS} texts.")


def _tools(name: str, value: Any) -> None:
    if (
        not isinstance(value, list)
        or len(value) > _MAX_TOOLS
        or not all(isinstance(tool, dict) for tool in value)
    ):
        raise invalid(name, f"`tools` must be a list of at most {_MAX_TOOLS} objects.")
    for index, tool in enumerate(value):
        if tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
            raise invalid(f"tools[{index}]", 'A tool must be {"type": "function", "function": {...}}.')
    check_grammar(name, value)


def _response_format(name: str, value: Any) -> None:
    if not isinstance(value, dict) or value.get("type") not in ("text", "json_object", "json_schema"):
        raise invalid(
            name, "`response_format` must be an object whose `type` is text, json_object or json_schema."
        )
    check_grammar(name, value)


def _structured_outputs(name: str, value: Any) -> None:
    _object(name, value)
    check_grammar(name, value)


def _modalities(name: str, value: Any) -> None:
    if value != ["text"]:
        raise invalid(
            name,
            'Only text is served here: leave `modalities` out or send ["text"].',
            code="media_not_supported",
        )


def _prompt(name: str, value: Any) -> None:
    if isinstance(value, str) or _is_ids(value):
        return
    if not isinstance(value, list) or not 0 < len(value) <= _MAX_PROMPTS:
        raise invalid(name, f"`prompt` must be a text, or a list of 1 to {_MAX_PROMPTS} texts.")
    if not all(isinstance(prompt, str) or _is_ids(prompt) for prompt in value):
        raise invalid(name, "Each entry of `prompt` must be a text or a list of token ids.")


def _is_ids(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(token) is int and 0 <= token < _TOKEN_IDS for token in value)
    )


_COMMON_FIELDS: dict[str, Check] = {
    "model": _anything,
    "n": _integer(1, MAX_CHOICES),
    "max_tokens": _integer(1, 1_000_000),
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "seed": _integer(-(2**63), 2**63 - 1),
    "stop": _stop,
    "logit_bias": _biases,
    "user": _text,
    "response_format": _response_format,
    # Sampling beyond OpenAI's, as vLLM names it: `extra_body` of the official package sends these.
    "top_k": _integer(-1, 1_000_000),
    "min_p": _number(0, 1),
    "repetition_penalty": _number(0.01, 10),
    "min_tokens": _integer(0, 1_000_000),
    "ignore_eos": _boolean,
    "stop_token_ids": _token_ids,
    "include_stop_str_in_output": _boolean,
    "skip_special_tokens": _boolean,
    "bad_words": _bad_words,
    "allowed_token_ids": _token_ids,
    "structured_outputs": _structured_outputs,
}
CHAT_FIELDS: dict[str, Check] = _COMMON_FIELDS | {
    "messages": _anything,
    "max_completion_tokens": _integer(1, 1_000_000),
    "logprobs": _boolean,
    "top_logprobs": _integer(0, 20),
    "tools": _tools,
    "tool_choice": _anything,
    "parallel_tool_calls": _boolean,
    "reasoning_effort": _text,
    "modalities": _modalities,
}
_COMPLETION_FIELDS: dict[str, Check] = _COMMON_FIELDS | {
    "prompt": _prompt,
    "logprobs": _integer(0, 20),
    "echo": _boolean,
    "suffix": _text,
    "best_of": _integer(1, 1),
}

# Hints to OpenAI's own service: they change nothing about an answer, so an app need not be changed to drop
# them.
_DROPPED = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "verbosity",
    }
)

_TEMPLATE = "The chat template belongs to the base and is the one its adapters were trained with."
_ADMIN = "It steers the engine, not the answer."
_GUIDED = "Engines ignore it without a word; use `response_format` with a JSON schema."
_MEDIA = "Only text is served here."
_TOOLS = "Use `tools` and `tool_choice`."
_REFUSED = {
    "add_generation_prompt": _TEMPLATE,
    "add_special_tokens": _TEMPLATE,
    "chat_template": _TEMPLATE,
    "chat_template_kwargs": _TEMPLATE,
    "continue_final_message": _TEMPLATE,
    "documents": _TEMPLATE,
    "cache_salt": _ADMIN,
    "ec_transfer_params": _ADMIN,
    "kv_transfer_params": _ADMIN,
    "lora_request": _ADMIN,
    "priority": _ADMIN,
    "prompt_embeds": _ADMIN,
    "prompt_logprobs": _ADMIN,
    "request_id": _ADMIN,
    "session_id": _ADMIN,
    "stream_interval": _ADMIN,
    "truncate_prompt_tokens": _ADMIN,
    "vllm_xargs": _ADMIN,
    "guided_choice": _GUIDED,
    "guided_decoding_backend": _GUIDED,
    "guided_grammar": _GUIDED,
    "guided_json": _GUIDED,
    "guided_regex": _GUIDED,
    "guided_whitespace_pattern": _GUIDED,
    "audio": _MEDIA,
    "media_io_kwargs": _MEDIA,
    "mm_processor_kwargs": _MEDIA,
    "prediction": _MEDIA,
    "web_search_options": _MEDIA,
    "function_call": _TOOLS,
    "functions": _TOOLS,
}
