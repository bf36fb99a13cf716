"""What an app may send, and how what it may not is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.gateway.errors import ApiError
from stillhouse.gateway.requests import parse_request

MESSAGES = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "clauses", "messages": MESSAGES, **fields}).encode()


def refused(raw: bytes, endpoint: str = "chat/completions") -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_request(endpoint, raw).upstream_body("x")  # type: ignore[arg-type]
    return caught.value


def test_what_the_official_package_may_send_goes_on() -> None:
    fields = {
        "temperature": 0.2,
        "top_p": 0.9,
        "n": 2,
        "seed": 7,
        "stop": ["\n\n"],
        "max_completion_tokens": 50,
        "logprobs": True,
        "top_logprobs": 3,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "tool_choice": "auto",
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}},
        "top_k": 5,
        "user": "u-1",
        "logit_bias": {"49151": -100},
        "stop_token_ids": [2],
        "allowed_token_ids": [5, 6],
        "bad_words": ["never"],
    }
    request = parse_request("chat/completions", chat(**fields))
    assert json.loads(request.upstream_body("a@0123456789ab")) == {
        "model": "a@0123456789ab",
        "messages": MESSAGES,
        **fields,
    }
    assert request.constrained and not request.stream


def test_usage_is_always_asked_for_and_given_only_on_request() -> None:
    plain = parse_request("chat/completions", chat(stream=True))
    asked = parse_request("chat/completions", chat(stream=True, stream_options={"include_usage": True}))
    assert (plain.wants_usage, asked.wants_usage) == (False, True)
    for request in (plain, asked):
        body = json.loads(request.upstream_body("x"))
        assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


def test_hints_to_openai_are_dropped_and_nulls_do_not_count() -> None:
    raw = chat(store=True, metadata={"a": "b"}, service_tier="auto", temperature=None, stop=None)
    body = json.loads(parse_request("chat/completions", raw).upstream_body("x"))
    assert set(body) == {"model", "messages"}


def test_the_developer_is_the_system_to_open_models() -> None:
    raw = chat(messages=[{"role": "developer", "content": "Be brief."}, *MESSAGES])
    assert parse_request("chat/completions", raw).body["messages"][0] == {
        "role": "system",
        "content": "Be brief.",
    }


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b'"text"', "invalid_json"),
        (b'{"model": NaN}', "invalid_json"),
        (b'{"model": ' + b"9" * 5000 + b"}", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"model": "\xff"}', "invalid_encoding"),
        (b'{"messages": []}', "missing_required_parameter"),
        (chat(messages=[{"role": "user", "content": "\ud800"}]), "invalid_unicode"),
    ],
)
def test_what_is_no_json_object_is_refused(raw: bytes, code: str) -> None:
    error = refused(raw)
    assert (error.status, error.code) == (400, code)
    assert error.message.endswith((".", "`."))


def wide(properties: int, objects: int = 1) -> dict[str, Any]:
    """A schema of so many objects with so many properties each."""
    one = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(properties)}}
    return {"anyOf": [one] * objects}


@pytest.mark.parametrize("how", ["response_format", "structured_outputs", "text", "tools"])
def test_a_schema_that_would_keep_the_engine_busy_is_refused(how: str) -> None:
    def asked(schema: dict[str, Any]) -> bytes:
        function = {"type": "function", "function": {"name": "f", "parameters": schema}}
        kinds: dict[str, dict[str, Any]] = {
            "response_format": {
                "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
            },
            "structured_outputs": {"structured_outputs": {"json": schema}},
            "text": {"structured_outputs": {"json": json.dumps(schema)}},
            "tools": {"tools": [function]},
        }
        return chat(**kinds[how])

    for schema in (wide(501), wide(300, 3), {"enum": ["x" * 300_000]}):
        error = refused(asked(schema))
        assert error.status == 400 and error.param in ("response_format", "structured_outputs", "tools")
    for schema in (wide(500), wide(100, 20), {"properties": 5}, {"enum": ['"properties"{']}):
        assert parse_request("chat/completions", asked(schema)).body


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a/../b", "/a", "a b", "a\x00b", "", 7, "x" * 161, "ä", "a@", "\ud800"]
)
def test_a_name_that_is_no_name_is_refused(name: Any) -> None:
    error = refused(chat(model=name))
    assert (error.status, error.param) == (400, "model")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("chat_template", "{{ 1 }}"),
        ("chat_template_kwargs", {"enable_thinking": False}),
        ("add_generation_prompt", False),
        ("guided_json", {}),
        ("lora_request", {"path": "/tmp"}),
        ("kv_transfer_params", {}),
        ("priority", -1),
        ("functions", []),
        ("no_such_field", 1),
    ],
)
def test_fields_of_templates_and_administrators_are_refused_with_a_reason(field: str, value: Any) -> None:
    error = refused(chat(**{field: value}))
    assert (error.status, error.code, error.param) == (400, "unknown_parameter", field)
    assert field in error.message and "Remove it." in error.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", 9),
        ("n", True),
        ("n", "2"),
        ("temperature", 3),
        ("temperature", "hot"),
        ("top_p", -0.1),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("top_logprobs", 21),
        ("seed", 2**63),
        ("stream", "yes"),
        ("stop", [1]),
        ("stop", ["a"] * 17),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"5": "much"}),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {str(token): 1 for token in range(1025)}),
        ("stop_token_ids", ["x"]),
        ("stop_token_ids", [2**70]),
        ("allowed_token_ids", [-1]),
        ("allowed_token_ids", [1] * 4097),
        ("bad_words", [""]),
        ("bad_words", ["a"] * 129),
        ("tools", {}),
        ("tools", [{"type": "web_search"}]),
        ("response_format", {"type": "xml"}),
        ("response_format", "json"),
        ("stream_options", {"include_usage": True}),
        ("logit_bias", []),
        ("modalities", ["text", "audio"]),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: Any) -> None:
    error = refused(chat(**{field: value}))
    assert error.status == 400
    assert (error.param or "").startswith(field)
    assert field in error.message or "tool" in error.message


@pytest.mark.parametrize(
    ("messages", "place"),
    [
        ([], "messages"),
        ("Hello", "messages"),
        (["Hello"], "messages[0]"),
        ([{"role": "king", "content": "x"}], "messages[0].role"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
        ([*MESSAGES, {"role": "tool", "content": "x"}], "messages[1].tool_call_id"),
    ],
)
def test_messages_are_checked_one_by_one(messages: Any, place: str) -> None:
    error = refused(chat(messages=messages))
    assert (error.status, error.param) == (400, place)


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video_url", "file"])
def test_media_is_refused(kind: str) -> None:
    part = {"type": kind, kind: {"url": "http://169.254.169.254/"}}
    error = refused(chat(messages=[{"role": "user", "content": [{"type": "text", "text": "Look"}, part]}]))
    assert (error.code, error.param) == ("media_not_supported", "messages[0].content[1]")


@pytest.mark.parametrize("prompt", [None, 5, [], [1, "a"], [[]], ["a"] * 33, {"a": 1}])
def test_a_completion_needs_a_prompt(prompt: Any) -> None:
    error = refused(json.dumps({"model": "clauses", "prompt": prompt}).encode(), "completions")
    assert (error.status, error.param) == (400, "prompt")


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_whatever_comes_is_taken_or_refused_and_never_breaks(value: Any) -> None:
    for field in ("messages", "model", "tools", "response_format", "stream_options", "stop", "n"):
        raw = json.dumps({"model": "clauses", "messages": MESSAGES, field: value}).encode()
        try:
            parse_request("chat/completions", raw).upstream_body("x")
        except ApiError as error:
            assert error.status == 400
