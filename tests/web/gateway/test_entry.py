"""The two ASGI entries, started as production starts them."""

import json
import logging
import os
import subprocess
import sys

import openai
import pytest
from django.conf import settings

from stillhouse.accounts.actions import create_key
from stillhouse.accounts.keys import KeyTerms
from stillhouse.gateway.sparing import MOST_A_SECOND, Sparing
from tests.web.gateway.house import House
from tests.web.gateway.process import ALONE, Server, uvicorn


def content_type_of_a_page(server: Server, house: House) -> str:
    """The API is there, and what is no address of it is said; returns how other addresses are answered."""
    client = server.client
    answer = client.get("/v1/models", headers={"authorization": f"Bearer {house.secret}"})
    assert answer.status_code == 200 and answer.json()["object"] == "list"
    nowhere = client.post("/v1/no-such-thing", json={})
    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "unknown_url")
    other = client.get("/no-such-page/", headers={"host": "testserver"})
    assert other.status_code == 404
    return str(other.headers["content-type"])


def test_the_gateway_alone_serves_the_api(house: House) -> None:
    with uvicorn(ALONE) as server:
        assert content_type_of_a_page(server, house) == "application/json"


def test_the_web_process_serves_the_api_and_holds_every_key_to_its_requests_a_minute(
    house: House, capfd: pytest.CaptureFixture[str]
) -> None:
    with uvicorn("stillhouse.asgi:application", METRICS_TOKEN="an-operators-token") as server:
        assert content_type_of_a_page(server, house).startswith("text/html")
        terms = KeyTerms(scopes=frozenset({"training"}), requests_per_minute=3)
        key, secret = create_key(by=house.lead, name="Pipeline", terms=terms)
        headers = {"host": "testserver"}
        with openai.OpenAI(
            api_key=secret, base_url=f"{server.client.base_url}/v1", max_retries=0, default_headers=headers
        ) as client:
            first = client.files.with_raw_response.list()
            assert first.headers["x-ratelimit-remaining-requests"] == "2"
            for _ in range(2):
                assert client.fine_tuning.jobs.list().data == []
            with pytest.raises(openai.RateLimitError) as refused:
                client.files.list()
            assert refused.value.code == "rate_limit_exceeded"
            assert 0 < int(refused.value.response.headers["retry-after"]) <= 20
        stranger = server.client.get("/v1/files", headers=headers)
        assert (stranger.status_code, stranger.json()["error"]["code"]) == (401, "invalid_api_key")
        for _ in range(2 * MOST_A_SECOND):
            assert server.client.get("/v1/files/file-" + "x" * 200, headers=headers).status_code == 401
        metrics = server.client.get("/metrics", headers={"authorization": "Bearer an-operators-token"}).text
        assert 'refusals_total{code="rate_limit_exceeded"} 1.0' in metrics
        assert f'refusals_total{{code="invalid_api_key"}} {2 * MOST_A_SECOND + 2}.0' in metrics
    lines = [line for line in capfd.readouterr().err.splitlines() if '"path":"/v1/files' in line]
    logged = [json.loads(line[line.index("{") :]) for line in lines]
    assert ("rate_limit_exceeded", key.id) in [(row["code"], row["caller"]) for row in logged]
    assert "invalid_api_key" in [row["code"] for row in logged]
    assert not any(secret in line or "x" * 100 in line for line in lines)


def test_of_a_flood_of_lines_so_many_a_second_are_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flood")
    now = [0.0]
    log = Sparing(logging.getLogger("flood"), clock=lambda: now[0])
    for number in range(100):
        log.info(f"{number}")
    assert [record.getMessage() for record in caplog.records] == [str(one) for one in range(MOST_A_SECOND)]
    caplog.clear()
    now[0] = 1.5
    log.info("later")
    log.info("last")
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"{100 - MOST_A_SECOND} lines like the next were left out", "later", "last"]


def test_the_gateway_alone_loads_no_apps_and_no_models() -> None:
    code = (
        "import stillhouse.gateway.asgi, sys; from django.apps import apps; assert not apps.ready; "
        "assert not [name for name in sys.modules if name.endswith('.models') and 'stillhouse' in name]"
    )
    environment = {**os.environ, "PYTHONPATH": f"{settings.REPOSITORY / 'platform'}:{settings.REPOSITORY}"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
