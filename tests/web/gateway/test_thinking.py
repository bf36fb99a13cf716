"""Reasoning on or off: as the version was trained, unless the app says otherwise."""

import json
from typing import Any

import pytest

from stillhouse.catalog.bases import NEMOTRON, NEMOTRON_1_5
from stillhouse.catalog.models import BaseModel
from stillhouse.gateway.requests import parse_request
from stillhouse.gateway.routing import Target
from stillhouse.gateway.snapshot import Replica
from stillhouse.gateway.thinking import for_engine
from stillhouse.publishing.actions import publish
from tests import registry
from tests.web.gateway.house import House, Serving, settle
from workers.contract import ThinkContract
from workers.training.render import _with_switch

QWEN3 = ThinkContract(family="qwen3", switch="template_flag")
ASK = [{"role": "user", "content": "Which clause is this?"}]


def sent(think: ThinkContract, reasons: bool | None, **fields: Any) -> dict[str, Any]:
    """What the engine gets for a request."""
    body = json.dumps({"model": "clauses", "messages": ASK, **fields}).encode()
    target = Target("a@0123456789ab", think, (Replica(1, "http://x"),), reasons=reasons)
    found: dict[str, Any] = json.loads(for_engine(parse_request("chat/completions", body), target))
    return found


@pytest.mark.parametrize("reasons", [True, False])
def test_a_template_is_told_what_training_told_it(reasons: bool) -> None:
    body = sent(QWEN3, reasons)
    assert body["chat_template_kwargs"] == {"enable_thinking": reasons}
    assert body["messages"] == ASK


@pytest.mark.parametrize("think", [NEMOTRON, NEMOTRON_1_5])
@pytest.mark.parametrize("reasons", [True, False])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_words_are_those_that_training_wrote(
    think: ThinkContract, reasons: bool, system: str | None
) -> None:
    messages = [*([{"role": "system", "content": system}] if system else []), *ASK]
    trained = _with_switch(messages, think, thinks=reasons)
    assert sent(think, reasons, messages=messages)["messages"] == trained


def test_parts_of_a_system_message_are_kept() -> None:
    parts = [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}]
    body = sent(NEMOTRON, False, messages=[{"role": "system", "content": parts}, *ASK])
    assert body["messages"][0]["content"] == "detailed thinking off\n\nBe brief.\nBe kind."


def test_the_app_may_say_otherwise() -> None:
    own = [{"role": "system", "content": "detailed thinking on. Be brief."}, *ASK]
    assert sent(NEMOTRON, False, messages=own)["messages"] == own
    for effort, wanted in (("none", False), ("low", True), ("high", True)):
        body = sent(QWEN3, not wanted, reasoning_effort=effort)
        assert (
            body["chat_template_kwargs"] == {"enable_thinking": wanted} and body["reasoning_effort"] is None
        )


def test_what_has_no_switch_or_no_adapter_is_left_alone() -> None:
    for think, reasons in ((ThinkContract(family="plain"), False), (QWEN3, None), (NEMOTRON, None)):
        body = sent(think, reasons)
        assert body == {"model": "a@0123456789ab", "messages": ASK}
    assert sent(ThinkContract(family="plain"), True, reasoning_effort="low")["reasoning_effort"] == "low"


def test_a_version_is_asked_as_its_data_and_policy_say(house: House, serving: Serving) -> None:
    shown = house.approved("traces")
    bare = house.approved("bare", data=registry.data_version(house.expert, "Bare", with_reasoning=0))
    told = house.approved("told", overrides={"think_policy": "no_think"})
    BaseModel.objects.filter(pk=registry.DEMO_BASE).update(think=QWEN3.model_dump(mode="json"))
    publish(by=house.lead, alias_name="clauses", version=told)
    settle(serving)
    with serving.client(house.secret) as client:
        for model in (shown.serving_name, bare.serving_name, "clauses", registry.DEMO_BASE):
            client.chat.completions.create(model=model, messages=[{"role": "user", "content": "?"}])
    flags = [body.get("chat_template_kwargs", {}).get("enable_thinking") for body in house.engine.seen]
    assert flags == [True, False, False, None]
