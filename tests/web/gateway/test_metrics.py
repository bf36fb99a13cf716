"""What an operator sees of a gateway, and who may see it."""

from typing import Any

import httpx

from tests.registry import DEMO_BASE
from tests.waiting import wait_for
from tests.web.gateway.cable import Cable
from tests.web.gateway.engine import Script
from tests.web.gateway.house import House, Serve, Serving, gateway_config

ASK: Any = [{"role": "user", "content": "Which clause is this?"}]
TOKEN = "an-operators-token"


def metrics(serving: Serving, token: str = TOKEN) -> httpx.Response:
    return httpx.get(f"{serving.url}/metrics", headers={"authorization": f"Bearer {token}"}, timeout=20)


def value(serving: Serving, name: str) -> float:
    """Of the sample whose line begins so."""
    lines = [
        line for line in metrics(serving).text.splitlines() if line.startswith(f"stillhouse_gateway_{name} ")
    ]
    return float(lines[0].rsplit(" ", 1)[1]) if lines else 0.0


def test_requests_tokens_and_the_ledger_are_counted_without_names(
    house: House, alias: str, serve: Serve
) -> None:
    serving = serve(gateway_config(metrics_token=TOKEN))
    house.engine.script = Script(text="<think>abc</think>def", piece=1)
    with serving.client(house.secret) as client:
        client.chat.completions.create(model=alias, messages=ASK)
        list(client.chat.completions.create(model=DEMO_BASE, messages=ASK, stream=True))
        client.models.list()
    for path in ("chat/completions", "feedback", "nothing-" + "x" * 20):
        httpx.post(f"{serving.url}/v1/{path}", json={})
    assert value(serving, 'requests_total{endpoint="chat/completions",status="200"}') == 2
    assert value(serving, 'requests_total{endpoint="chat/completions",status="401"}') == 1
    assert value(serving, 'requests_total{endpoint="models",status="200"}') == 1
    assert value(serving, 'requests_total{endpoint="feedback",status="401"}') == 1
    assert value(serving, 'requests_total{endpoint="other",status="404"}') == 1
    assert value(serving, 'tokens_total{kind="prompt"}') == 14
    assert value(serving, 'tokens_total{kind="completion"}') == 42
    assert 20 <= value(serving, 'tokens_total{kind="reasoning"}') <= 24
    assert value(serving, "first_token_seconds_count") == 1
    assert value(serving, "postgres_up") == 1 and value(serving, "ledger_lost") == 0
    text = metrics(serving).text
    for name in (
        alias,
        house.held[0].serving_name,
        house.key.id,
        DEMO_BASE,
        "acme",
        "nothing-",
        ASK[0]["content"],
    ):
        assert name not in text


def test_the_snapshot_says_when_it_grows_old(house: House, alias: str, serve: Serve) -> None:
    with Cable(gateway_config().database_url) as cable:
        serving = serve(gateway_config(database_url=cable.url, database_seconds=1, metrics_token=TOKEN))
        assert value(serving, "postgres_up") == 1
        cable.cut()
        wait_for(lambda: value(serving, "postgres_up") == 0)
        first = value(serving, "snapshot_age_seconds")
        with serving.client(house.secret) as client:
            assert client.chat.completions.create(model=alias, messages=ASK)
        assert value(serving, "snapshot_age_seconds") > first
        assert value(serving, "ledger_waiting_bytes") > 0
        cable.mend()
        wait_for(lambda: value(serving, "postgres_up") == 1)
        wait_for(lambda: value(serving, "ledger_waiting_bytes") == 0)


def test_nobody_sees_them_without_the_token(house: House, serve: Serve) -> None:
    serving = serve(gateway_config(metrics_token=TOKEN))
    for token in ("wrong", house.secret):
        answer = metrics(serving, token)
        assert answer.status_code == 401 and "stillhouse_gateway" not in answer.text
    assert httpx.get(f"{serving.url}/metrics").status_code == 401
    without = serve(gateway_config())
    assert metrics(without, "x").status_code == metrics(without, TOKEN).status_code == 404
