"""What a key may do: scopes, expiry, requests and tokens a minute, tokens a month."""

from datetime import timedelta
from typing import Any

import httpx
import openai
import pytest
from django.utils import timezone

from stillhouse.accounts.actions import change_key, create_key
from stillhouse.accounts.keys import KeyTerms
from stillhouse.accounts.models import ApiKey
from stillhouse.gateway.errors import ApiError
from stillhouse.gateway.limits import Limits
from stillhouse.gateway.snapshot import Key
from stillhouse.gateway.usage import Record
from stillhouse.usage.models import UsageHour
from tests.registry import DEMO_BASE
from tests.waiting import wait_for
from tests.web.gateway.engine import Script
from tests.web.gateway.house import House, Serve, Serving, gateway_config

ASK: Any = [{"role": "user", "content": "Which clause is this?"}]


def ask(serving: Serving, secret: str, **fields: Any) -> httpx.Response:
    return httpx.post(
        f"{serving.url}/v1/chat/completions",
        headers={"authorization": f"Bearer {secret}"},
        json={"model": DEMO_BASE, "messages": ASK, **fields},
        timeout=20,
    )


def code(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def refused(limits: Limits, key: Key) -> ApiError:
    with pytest.raises(ApiError) as caught:
        limits.admit(key)
    assert caught.value.status == 429
    return caught.value


def test_requests_flow_off_at_the_rate_of_the_limit() -> None:
    clock = Clock()
    limits, key = Limits(clock), Key("key_1", "ws_1", requests_per_minute=3)
    for _ in range(3):
        limits.admit(key)
    for _ in range(5):  # a refused request does not count
        assert refused(limits, key).retry_after == 20
    clock.now += 19.9
    refused(limits, key)
    clock.now += 0.2
    limits.admit(key)
    refused(limits, key)
    clock.now += 600  # a long rest is worth one minute, not ten
    for _ in range(3):
        limits.admit(key)
    refused(limits, key)


def test_a_request_that_uses_no_tokens_is_held_to_requests_alone() -> None:
    limits = Limits(Clock())
    key = Key(
        "key_1", "ws_1", requests_per_minute=2, tokens_per_minute=10, monthly_tokens=5, tokens_this_month=5
    )
    limits.spend(Record(id="req_1", key="key_1", prompt_tokens=50))
    assert refused(limits, key).code == "insufficient_quota"
    told = limits.admit(key, uses_tokens=False)
    assert (b"x-ratelimit-remaining-requests", b"1") in told
    limits.admit(key, uses_tokens=False)
    with pytest.raises(ApiError, match="rate_limit_exceeded"):
        limits.admit(key, uses_tokens=False)


def test_tokens_beyond_the_minute_are_paid_back() -> None:
    clock = Clock()
    limits, key = Limits(clock), Key("key_1", "ws_1", tokens_per_minute=60)
    limits.admit(key)
    limits.spend(Record(id="req_1", key="key_1", prompt_tokens=50, completion_tokens=100))
    error = refused(limits, key)
    assert error.code == "rate_limit_exceeded" and error.retry_after == 90
    clock.now += 89
    refused(limits, key)
    clock.now += 2
    headers = dict(limits.admit(key))
    assert headers[b"x-ratelimit-limit-tokens"] == b"60"
    assert headers[b"x-ratelimit-remaining-tokens"] == b"1"
    assert headers[b"x-ratelimit-reset-tokens"] == b"59s"


def test_the_month_counts_the_ledger_and_what_it_does_not_have_yet() -> None:
    limits, key = Limits(Clock()), Key("key_1", "ws_1", monthly_tokens=100, tokens_this_month=60)
    limits.admit(key)
    limits.spend(Record(id="req_1", key="key_1", prompt_tokens=30, completion_tokens=9))
    limits.spend(Record(id="req_2", key="key_1", prompt_tokens=500, shadow=True))
    limits.admit(key)
    limits.spend(Record(id="req_3", key="key_1", prompt_tokens=1))
    error = refused(limits, key)
    assert error.code == "insufficient_quota" and (b"x-should-retry", b"false") in error.headers()
    limits.settle({"key_1": 40}, {"key_1"})  # a fresh snapshot has them
    refused(limits, Key("key_1", "ws_1", monthly_tokens=100, tokens_this_month=100))
    limits.admit(Key("key_1", "ws_1", monthly_tokens=101, tokens_this_month=100))
    limits.settle({}, set())
    assert not limits._unread and not limits._tokens


def test_an_app_that_asks_too_often_is_told_when_to_come_back(house: House, serving: Serving) -> None:
    _, secret = create_key(by=house.lead, name="app", terms=KeyTerms(requests_per_minute=2))
    first = ask(serving, secret)
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert "x-ratelimit-limit-tokens" not in first.headers
    assert ask(serving, secret).headers["x-ratelimit-remaining-requests"] == "0"
    answer = ask(serving, secret)
    assert (answer.status_code, code(answer)) == (429, "rate_limit_exceeded")
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(answer.headers["retry-after"]) <= 30
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    with serving.client(secret) as client, pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model=DEMO_BASE, messages=ASK)
    assert ask(serving, house.secret).status_code == 200
    assert not [name for name in ask(serving, house.secret).headers if "ratelimit" in name]


def test_an_app_that_uses_too_many_tokens_waits(house: House, serving: Serving) -> None:
    house.engine.script = Script(text="x" * 100)
    _, secret = create_key(by=house.lead, name="app", terms=KeyTerms(tokens_per_minute=50))
    assert ask(serving, secret, stream=True).headers["x-ratelimit-remaining-tokens"] == "50"
    answer = ask(serving, secret)
    assert (answer.status_code, code(answer)) == (429, "rate_limit_exceeded")
    assert int(answer.headers["retry-after"]) > 30


def test_a_budget_holds_across_gateways_and_restarts(house: House, serve: Serve) -> None:
    house.engine.script = Script(text="x" * 13)  # and 7 of the prompt: 20 a request
    key, secret = create_key(by=house.lead, name="app", terms=KeyTerms(monthly_tokens=50))
    first = serve(gateway_config())
    assert [ask(first, secret).status_code for _ in range(4)] == [200, 200, 200, 429]
    answer = ask(first, secret)
    assert code(answer) == answer.json()["error"]["type"] == "insufficient_quota"
    assert answer.headers["x-should-retry"] == "false"
    wait_for(lambda: UsageHour.objects.filter(key=key.id, requests=3).exists())
    second = serve(gateway_config())
    assert ask(second, secret).status_code == 429
    change_key(by=house.lead, key=key, terms=KeyTerms(monthly_tokens=70))
    for serving in (first, second):
        wait_for(lambda serving=serving: ask(serving, secret).status_code == 200)  # type: ignore[misc]


def test_last_months_tokens_are_not_this_months(house: House, serving: Serving) -> None:
    key, secret = create_key(by=house.lead, name="app", terms=KeyTerms(monthly_tokens=50))
    assert ask(serving, secret).status_code == 200
    wait_for(lambda: UsageHour.objects.filter(key=key.id).exists())
    UsageHour.objects.filter(key=key.id).update(prompt_tokens=1000)
    wait_for(lambda: ask(serving, secret).status_code == 429)
    UsageHour.objects.filter(key=key.id).update(hour=timezone.now() - timedelta(days=32))
    wait_for(lambda: ask(serving, secret).status_code == 200)


def test_a_key_does_what_it_is_for(house: House, serving: Serving) -> None:
    _, asks = create_key(by=house.lead, name="asks", terms=KeyTerms(scopes=frozenset({"inference"})))
    _, lists = create_key(by=house.lead, name="lists", terms=KeyTerms(scopes=frozenset({"models"})))
    assert ask(serving, asks).status_code == 200
    answer = ask(serving, lists)
    assert (answer.status_code, code(answer)) == (403, "missing_scope")
    with serving.client(lists) as client:
        assert [model.id for model in client.models.list()] == [DEMO_BASE]
    with serving.client(asks) as client, pytest.raises(openai.PermissionDeniedError):
        client.models.list()


def test_a_key_ends_when_it_expires(house: House, serving: Serving) -> None:
    soon = timezone.now() + timedelta(hours=1)
    key, secret = create_key(by=house.lead, name="app", terms=KeyTerms(expires_at=soon))
    assert ask(serving, secret).status_code == 200
    ApiKey.objects.filter(pk=key.pk).update(expires_at=timezone.now() - timedelta(seconds=1))
    wait_for(lambda: ask(serving, secret).status_code == 401)
    assert "expired" in ask(serving, secret).json()["error"]["message"]


def test_an_apps_own_request_id_comes_back_and_the_ledger_keeps_ours(house: House, serving: Serving) -> None:
    headers = {"authorization": f"Bearer {house.secret}", "x-request-id": "trace-7:a.b_c"}
    url, body = f"{serving.url}/v1/chat/completions", {"model": DEMO_BASE, "messages": ASK}
    answers = [httpx.post(url, headers=headers, json=body) for _ in range(2)]
    assert {answer.headers["x-request-id"] for answer in answers} == {"trace-7:a.b_c"}
    ours = {answer.headers["x-stillhouse-request"] for answer in answers}
    assert len(ours) == 2 and all(name.startswith("req_") for name in ours)
    for wrong in ("a b", "x" * 129, "<script>"):
        answer = httpx.post(url, headers={**headers, "x-request-id": wrong}, json=body)
        assert answer.headers["x-request-id"] == answer.headers["x-stillhouse-request"]
