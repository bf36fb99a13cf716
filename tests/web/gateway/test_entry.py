"""The two ASGI entries, started as production starts them."""

import os
import subprocess
import sys

import pytest
from django.conf import settings

from tests.web.gateway.house import House
from tests.web.gateway.process import uvicorn


@pytest.mark.parametrize(
    "application", ["stillhouse.asgi:application", "stillhouse.gateway.asgi:application"]
)
def test_an_entry_serves_the_api_and_knows_what_is_not_its_own(house: House, application: str) -> None:
    with uvicorn(application) as server:
        client = server.client
        answer = client.get("/v1/models", headers={"authorization": f"Bearer {house.secret}"})
        assert answer.status_code == 200 and answer.json()["object"] == "list"
        other = client.get("/no-such-page/", headers={"host": "testserver"})
        assert other.status_code == 404
        nowhere = client.post("/v1/no-such-thing", json={})
        assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "unknown_url")
        is_json = other.headers["content-type"] == "application/json"
        assert is_json == (application == "stillhouse.gateway.asgi:application")


def test_the_gateway_alone_loads_no_apps_and_no_models() -> None:
    code = (
        "import stillhouse.gateway.asgi, sys; from django.apps import apps; assert not apps.ready; "
        "assert not [name for name in sys.modules if name.endswith('.models') and 'stillhouse' in name]"
    )
    environment = {**os.environ, "PYTHONPATH": f"{settings.REPOSITORY / 'platform'}:{settings.REPOSITORY}"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
