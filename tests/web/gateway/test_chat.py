"""Answers through the gateway, asked for by the official `openai` package."""

import json
from typing import Any

import httpx
import openai
import pytest

from stillhouse.accounts.grants import make_grant
from stillhouse.publishing.actions import publish, rollback
from stillhouse.usage.models import UsageRecord
from tests.registry import DEMO_BASE
from tests.waiting import wait_for
from tests.web.gateway.engine import Script
from tests.web.gateway.house import House, Serving

ASK: Any = [{"role": "user", "content": "Which clause is this?"}]
THOUGHT = '<think>\nIt speaks of fees.\n</think>\n\n{"type": "payment"}'


def test_a_whole_answer_has_its_reasoning_apart(house: House, alias: str, serving: Serving) -> None:
    house.engine.script = Script(text=THOUGHT)
    version = house.held[0].serving_name
    with serving.client(house.secret) as client:
        raw = client.chat.completions.with_raw_response.create(model=alias, messages=ASK, temperature=0)
    answer = raw.parse()
    message: Any = answer.choices[0].message
    assert message.content == '{"type": "payment"}'
    assert message.reasoning == message.reasoning_content == "It speaks of fees.\n"
    assert answer.model == raw.headers["x-stillhouse-version"] == version
    assert raw.headers["x-request-id"].startswith("req_")
    assert house.engine.seen[-1] == {"model": version, "messages": ASK, "temperature": 0}


def test_a_stream_has_its_reasoning_apart(house: House, alias: str, serving: Serving) -> None:
    for piece in (1, 3, 5, 1000):
        house.engine.script = Script(text=THOUGHT, piece=piece, logprobs=True)
        with serving.client(house.secret) as client:
            chunks = list(
                client.chat.completions.create(model=alias, messages=ASK, stream=True, logprobs=True)
            )
        deltas: list[Any] = [chunk.choices[0].delta for chunk in chunks]
        assert "".join(delta.content or "" for delta in deltas) == '{"type": "payment"}'
        for name in ("reasoning", "reasoning_content"):
            assert "".join(getattr(delta, name, None) or "" for delta in deltas) == "It speaks of fees.\n"
        assert "".join(_tokens(chunks)) == THOUGHT
        assert deltas[0].role == "assistant"
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert {chunk.model for chunk in chunks} == {house.held[0].serving_name}
        assert all(chunk.usage is None for chunk in chunks)


def _tokens(chunks: list[Any]) -> list[str]:
    """The tokens of the log-probabilities, in order."""
    found = [chunk.choices[0].logprobs for chunk in chunks]
    return [item.token for logprobs in found if logprobs for item in logprobs.content or []]


def test_a_thought_cut_off_by_the_token_limit_never_lands_in_the_content(
    house: House, alias: str, serving: Serving
) -> None:
    house.engine.script = Script(text="<think>It spea", finish="length", piece=5)
    with serving.client(house.secret) as client:
        whole: Any = client.chat.completions.create(model=alias, messages=ASK).choices[0].message
        chunks = list(client.chat.completions.create(model=alias, messages=ASK, stream=True))
    assert (whole.content, whole.reasoning) == ("", "It spea")
    deltas: list[Any] = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == ""
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == "It spea"


def test_the_usage_chunk_comes_when_it_is_asked_for(house: House, alias: str, serving: Serving) -> None:
    house.engine.script = Script(text="abcdef", piece=2)
    with serving.client(house.secret) as client:
        options: Any = {"include_usage": True}
        chunks = list(
            client.chat.completions.create(model=alias, messages=ASK, stream=True, stream_options=options)
        )
    assert not chunks[-1].choices
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens == 6
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_several_choices_keep_their_own_reasoning(house: House, alias: str, serving: Serving) -> None:
    house.engine.script = Script(text=THOUGHT, piece=4)
    with serving.client(house.secret) as client:
        whole = client.chat.completions.create(model=alias, messages=ASK, n=2)
        chunks = list(client.chat.completions.create(model=alias, messages=ASK, n=2, stream=True))
    assert [choice.message.content for choice in whole.choices] == ['{"type": "payment"}'] * 2
    for index in (0, 1):
        mine = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert "".join(choice.delta.content or "" for choice in mine) == '{"type": "payment"}'
        assert mine[-1].finish_reason == "stop"


def test_completions_pass_through_as_they_are(house: House, alias: str, serving: Serving) -> None:
    house.engine.script = Script(text=THOUGHT, piece=6)
    with serving.client(house.secret) as client:
        whole = client.completions.create(model=alias, prompt="Once", max_tokens=20)
        chunks = list(client.completions.create(model=alias, prompt="Once", stream=True))
    assert whole.choices[0].text == THOUGHT
    assert "".join(chunk.choices[0].text for chunk in chunks) == THOUGHT
    assert whole.model == chunks[0].model == house.held[0].serving_name


def test_the_base_and_an_approved_version_answer_by_name(house: House, alias: str, serving: Serving) -> None:
    with serving.client(house.secret) as client:
        for name in (DEMO_BASE, house.held[0].serving_name):
            assert client.chat.completions.create(model=name, messages=ASK).model == name


def test_the_list_names_what_this_key_may_call_and_nothing_else(
    house: House, alias: str, serving: Serving
) -> None:
    secret = house.candidate("still-secret").serving_name
    version = house.held[0].serving_name
    with serving.client(house.secret) as client:
        with pytest.raises(openai.PermissionDeniedError):  # so the gateway knows of it when it lists
            client.chat.completions.create(model=secret, messages=ASK)
        assert {model.id for model in client.models.list()} == {alias, version, DEMO_BASE}
        assert client.models.retrieve(alias).owned_by == "acme"
        assert client.models.retrieve(version).id == version
    with serving.client(house.outsider_secret) as client:
        assert [model.id for model in client.models.list()] == [DEMO_BASE]
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(alias)


def test_publish_and_rollback_turn_the_next_request(house: House, alias: str, serving: Serving) -> None:
    first, second = house.held[0], house.approved("second-try")
    with serving.client(house.secret) as client:

        def answering() -> str:
            return client.chat.completions.create(model=alias, messages=ASK).model

        assert answering() == first.serving_name
        for change, version in (("publish", second), ("rollback", first)):
            if change == "publish":
                published = publish(by=house.lead, alias_name=alias, version=second)
            else:
                rollback(by=house.lead, alias=published.alias)
            wait_for(lambda version=version: answering() == version.serving_name)  # type: ignore[misc]
        published_now = publish(by=house.lead, alias_name="brand-new", version=first)
        assert (
            client.chat.completions.create(model=published_now.alias.name, messages=ASK).model
            == first.serving_name
        )


def test_a_grant_may_call_the_candidate_it_names_and_nothing_else(
    house: House, alias: str, serving: Serving
) -> None:
    candidate = house.candidate("next").serving_name
    workspace = house.expert.workspace_id
    narrow = make_grant(workspace_id=workspace, caller="job_1", models=[DEMO_BASE, candidate], seconds=60)
    with serving.client(narrow) as client:
        # A name that is new to the gateway makes it look again, so the list comes second.
        assert client.chat.completions.create(model=candidate, messages=ASK).model == candidate
        assert {model.id for model in client.models.list()} == {DEMO_BASE, candidate}
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model=alias, messages=ASK)
    wide = make_grant(workspace_id=workspace, caller=house.expert.user_id, models=None, seconds=60)
    with serving.client(wide) as client:
        assert client.chat.completions.create(model=alias, messages=ASK)
        with pytest.raises(openai.PermissionDeniedError):
            client.chat.completions.create(model=candidate, messages=ASK)
    foreign = make_grant(
        workspace_id=house.outsider.workspace_id, caller="job_2", models=[candidate, alias], seconds=60
    )
    with serving.client(foreign) as client, pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=candidate, messages=ASK)


def test_every_answer_leaves_a_record_and_no_content(house: House, alias: str, serving: Serving) -> None:
    house.engine.script = Script(text="abcdef", piece=2)
    with serving.client(house.secret) as client:
        whole = client.chat.completions.with_raw_response.create(model=alias, messages=ASK)
        streamed = client.chat.completions.with_raw_response.create(model=alias, messages=ASK, stream=True)
        list(streamed.parse())
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="nothing", messages=ASK)
    wait_for(lambda: UsageRecord.objects.count() == 2)
    for answer in (whole, streamed):
        row = UsageRecord.objects.get(pk=answer.headers["x-request-id"])
        assert (row.workspace_id, row.caller, row.model) == (house.expert.workspace_id, house.key.id, alias)
        assert (row.served, row.status, row.finish_reason) == (house.held[0].serving_name, 200, "stop")
        assert (row.prompt_tokens, row.completion_tokens, row.cancelled) == (7, 6, False)
        assert row.total_ms > 0
        assert (row.first_token_ms is not None) == (answer is streamed)


def test_a_client_that_goes_away_stops_the_generation_and_is_counted(
    house: House, alias: str, serving: Serving
) -> None:
    house.engine.script = Script(text="x" * 400, piece=1, pause=0.02)
    with serving.client(house.secret) as client:
        stream = client.chat.completions.create(model=alias, messages=ASK, stream=True)
        for count, _ in enumerate(stream):
            if count == 5:
                break
        stream.close()
    wait_for(lambda: house.engine.aborted == 1, 2.0)
    assert house.engine.sent < 100
    wait_for(lambda: UsageRecord.objects.filter(cancelled=True).exists())
    row = UsageRecord.objects.get()
    assert row.status == 200 and 0 < row.completion_tokens < 100


def test_a_client_that_goes_away_before_the_answer_stops_it_too(
    house: House, alias: str, serving: Serving
) -> None:
    house.engine.script = Script(pause=10)
    with serving.client(house.secret) as client, pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model=alias, messages=ASK, timeout=0.3)
    wait_for(lambda: house.engine.aborted == 1, 2.0)
    wait_for(lambda: UsageRecord.objects.filter(cancelled=True, status=499).exists())


@pytest.mark.parametrize(
    "script", [Script(text="abcdef", piece=1, error_after=3), Script(text="abcdef", piece=1, break_after=3)]
)
def test_a_stream_that_breaks_ends_in_an_error_event(
    house: House, alias: str, serving: Serving, script: Script
) -> None:
    house.engine.script = script
    with serving.client(house.secret) as client:
        got = []
        with pytest.raises(openai.APIError) as caught:
            for chunk in client.chat.completions.create(model=alias, messages=ASK, stream=True):
                got.append(chunk.choices[0].delta.content or "")
    assert "".join(got) == "ab"
    assert "EngineCore" not in str(caught.value)
    assert str(caught.value.code) in ("engine_error", "engine_interrupted")


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [("plain", None), ("<think></think>plain", ""), ("<think>\n\n</think>\n\nplain", "")],
)
def test_no_block_is_null_and_an_empty_one_is_empty(
    house: House, alias: str, serving: Serving, text: str, reasoning: str | None
) -> None:
    house.engine.script = Script(text=text, piece=3)
    with serving.client(house.secret) as client:
        whole: Any = client.chat.completions.create(model=alias, messages=ASK).choices[0].message
        chunks: Any = list(client.chat.completions.create(model=alias, messages=ASK, stream=True))
    assert (whole.content, whole.reasoning, whole.reasoning_content) == ("plain", reasoning, reasoning)
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    said = [delta.reasoning for delta in deltas if hasattr(delta, "reasoning")]
    assert said == ([] if reasoning is None else [""])
    assert "".join(delta.content or "" for delta in deltas) == "plain"


def test_an_answer_with_bytes_of_many_kinds_survives(house: House, alias: str, serving: Serving) -> None:
    text = '<think>ünïcödé 🙂</think> 日本語 \u2028 \\ " \n\n data: [DONE] {}'
    house.engine.script = Script(text=text, piece=1)
    with serving.client(house.secret) as client:
        whole: Any = client.chat.completions.create(model=alias, messages=ASK).choices[0].message
        chunks = list(client.chat.completions.create(model=alias, messages=ASK, stream=True))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert whole.content == streamed == text.split("</think> ")[1]
    assert whole.reasoning == "ünïcödé 🙂"


def test_the_wire_is_plain_server_sent_events(house: House, alias: str, serving: Serving) -> None:
    house.engine.script = Script(text="abcd", piece=2)
    answer = httpx.post(
        f"{serving.url}/v1/chat/completions",
        headers={"authorization": f"bearer {house.secret}"},
        json={"model": alias, "messages": ASK, "stream": True},
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert json.loads(events[0].removeprefix("data: "))["object"] == "chat.completion.chunk"
