"""The Responses API, by the official package: an answer, its stream, tools, and what is refused."""

import json
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response

from stillhouse.usage.models import UsageRecord
from tests.waiting import wait_for
from tests.web.gateway.engine import Script
from tests.web.gateway.house import House, Serving

THOUGHT = '<think>\nMoney, so payment.\n</think>\n\n{"type": "payment"}'
CALL = {"name": "look_up", "arguments": '{"clause": 4}'}
TOOL: Any = {"type": "function", "name": "look_up", "parameters": {"type": "object"}, "strict": True}


def texts(response: Response) -> tuple[str, str]:
    """Reasoning and answer."""
    reasoning = [
        part.text for item in response.output if item.type == "reasoning" for part in item.content or []
    ]
    return "".join(reasoning), response.output_text


def post(serving: Serving, secret: str, **fields: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {secret}"}
    return httpx.post(f"{serving.url}/v1/responses", headers=headers, json=fields, timeout=20)


def test_an_answer_with_its_reasoning_apart(house: House, alias: str, serving: Serving) -> None:
    house.engine.script = Script(text=THOUGHT)
    with serving.client(house.secret) as client:
        response = client.responses.create(
            model=alias,
            instructions="Name the clause.",
            input="The tenant pays monthly.",
            max_output_tokens=90,
        )
    assert texts(response) == ("Money, so payment.\n", '{"type": "payment"}')
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert (response.status, response.model) == ("completed", house.held[0].serving_name)
    assert response.usage and response.usage.input_tokens == 7
    assert response.usage.output_tokens == len(THOUGHT)
    assert response.usage.output_tokens_details.reasoning_tokens > 0
    sent = house.engine.seen[0]
    assert sent["messages"] == [
        {"role": "system", "content": "Name the clause."},
        {"role": "user", "content": "The tenant pays monthly."},
    ]
    assert sent["max_completion_tokens"] == 90
    wait_for(lambda: UsageRecord.objects.count() == 1)
    row = UsageRecord.objects.get()
    assert (row.alias, row.completion_tokens) == (alias, len(THOUGHT))
    assert response.id.removeprefix("resp_") == row.id.removeprefix("req_")


@pytest.mark.parametrize("piece", [1, 7, 200])
def test_a_stream_builds_the_same_response(house: House, alias: str, serving: Serving, piece: int) -> None:
    house.engine.script = Script(text=THOUGHT, piece=piece)
    with serving.client(house.secret) as client, client.responses.stream(model=alias, input="Hm?") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert texts(final) == ("Money, so payment.\n", '{"type": "payment"}')
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    assert [event.sequence_number for event in events if hasattr(event, "sequence_number")] == list(
        range(len(events))
    )
    opened = [event.item.type for event in events if event.type == "response.output_item.added"]
    assert opened == ["reasoning", "message"] and kinds.count("response.output_item.done") == 2
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == '{"type": "payment"}'
    assert final.usage and final.usage.output_tokens == len(THOUGHT)
    wait_for(lambda: UsageRecord.objects.filter(completion_tokens=len(THOUGHT)).exists())


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_cut_off_says_so_and_is_no_answer(
    house: House, alias: str, serving: Serving, stream: bool
) -> None:
    house.engine.script = Script(text="<think>half a thought", finish="length")
    with serving.client(house.secret) as client:
        if stream:
            *_, last = client.responses.create(model=alias, input="Hm?", stream=True)
            assert last.type == "response.incomplete"
            response = last.response
        else:
            response = client.responses.create(model=alias, input="Hm?")
    assert response.status == "incomplete" and texts(response) == ("half a thought", "")
    assert response.incomplete_details and response.incomplete_details.reason == "max_output_tokens"


def test_tools_go_there_and_back(house: House, alias: str, serving: Serving) -> None:
    house.engine.script = Script(text="", tool_calls=[CALL])
    with serving.client(house.secret) as client:
        first = client.responses.create(
            model=alias, input="Clause 4?", tools=[TOOL], tool_choice={"type": "function", "name": "look_up"}
        )
        events = list(client.responses.create(model=alias, input="Clause 4?", tools=[TOOL], stream=True))
        [call] = first.output
        assert call.type == "function_call" and (call.name, call.arguments) == tuple(CALL.values())
        assert events[-1].type == "response.completed"
        [streamed] = events[-1].response.output
        assert streamed.type == "function_call" and streamed.arguments == CALL["arguments"]
        house.engine.script = Script(text="It is about payment.")
        items: Any = [
            {"role": "user", "content": [{"type": "input_text", "text": "Clause 4?"}]},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Look."}]},
            {"type": "function_call", "call_id": call.call_id, **CALL},
            {"type": "function_call_output", "call_id": call.call_id, "output": "rent"},
        ]
        assert client.responses.create(model=alias, input=items).output_text == "It is about payment."
    sent = house.engine.seen[0]
    assert sent["tools"] == [
        {
            "type": "function",
            "function": {"name": "look_up", "parameters": {"type": "object"}, "strict": True},
        }
    ]
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "look_up"}}
    assert house.engine.seen[2]["messages"] == [
        {"role": "user", "content": "Clause 4?"},
        {
            "role": "assistant",
            "reasoning": "Look.",
            "tool_calls": [{"id": call.call_id, "type": "function", "function": CALL}],
        },
        {"role": "tool", "tool_call_id": call.call_id, "content": "rent"},
    ]


def test_a_schema_becomes_the_chat_endpoints(house: House, alias: str, serving: Serving) -> None:
    schema = {"type": "json_schema", "name": "clause", "schema": {"type": "object"}, "strict": True}
    assert post(serving, house.secret, model=alias, input="x", text={"format": schema}).status_code == 200
    wanted = {"name": "clause", "schema": {"type": "object"}, "strict": True}
    assert house.engine.seen[0]["response_format"] == {"type": "json_schema", "json_schema": wanted}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, "missing_required_parameter", "input"),
        ({"input": []}, "invalid_value", "input"),
        ({"input": "x", "previous_response_id": "resp_1"}, "unknown_parameter", "previous_response_id"),
        ({"input": "x", "background": True}, "unknown_parameter", "background"),
        ({"input": "x", "truncation": "auto"}, "invalid_value", "truncation"),
        ({"input": "x", "chat_template": "{{ 1 }}"}, "unknown_parameter", "chat_template"),
        ({"input": "x", "lora_request": {}}, "unknown_parameter", "lora_request"),
        ({"input": "x", "temperature": 9}, "invalid_value", "temperature"),
        ({"input": "x", "text": {"format": {"type": "grammar"}}}, "invalid_value", "response_format"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "invalid_value", "tools[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "invalid_value", "input[0]"),
        ({"input": [{"role": "user", "content": 5}]}, "invalid_value", "input[0].content"),
        ({"input": [{"role": "robot", "content": "x"}]}, "invalid_value", "input[0].role"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "invalid_value", "input[0].call_id"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]},
            "media_not_supported",
            "input[0].content[0]",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_place(
    house: House, alias: str, serving: Serving, fields: dict[str, Any], code: str, param: str
) -> None:
    answer = post(serving, house.secret, model=alias, **fields)
    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, param)
    assert not house.engine.seen


def test_an_outsider_finds_no_model(house: House, alias: str, serving: Serving) -> None:
    with serving.client(house.outsider_secret) as client, pytest.raises(openai.NotFoundError):
        client.responses.create(model=alias, input="x")


@pytest.mark.parametrize(
    "script", [Script(text="abcdef", piece=1, break_after=3), Script("abcdef", 1, error_after=3)]
)
def test_a_stream_that_breaks_ends_failed(house: House, alias: str, serving: Serving, script: Script) -> None:
    house.engine.script = script
    answer = post(serving, house.secret, model=alias, input="x", stream=True)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-1]["response"]["status"] == "failed" and "EngineCore" not in answer.text
