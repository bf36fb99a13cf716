"""The two ASGI entries, started as production starts them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from django.conf import settings

from tests.web.gateway.engine import free_port, wait_until
from tests.web.gateway.house import House, gateway_config


@contextmanager
def uvicorn(application: str) -> Iterator[httpx.Client]:
    """A client of the application, on the test database."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", application, "--app-dir", "platform", "--host", "127.0.0.1"]
    options = ["--port", str(port), "--http", "stillhouse.gateway.protocol:LimitedHttp", "--no-access-log"]
    environment = {**os.environ, "DATABASE_URL": gateway_config().database_url}
    process = subprocess.Popen([*command, *options], cwd=settings.REPOSITORY, env=environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:

            def answers() -> bool:
                try:
                    return client.get("/v1/models").status_code == 401
                except httpx.TransportError:
                    return False

            assert wait_until(answers, 30)
            yield client
    finally:
        process.terminate()
        assert process.wait(timeout=15) in (0, -15)


@pytest.mark.parametrize(
    "application", ["stillhouse.asgi:application", "stillhouse.gateway.asgi:application"]
)
def test_an_entry_serves_the_api_and_knows_what_is_not_its_own(house: House, application: str) -> None:
    with uvicorn(application) as client:
        answer = client.get("/v1/models", headers={"authorization": f"Bearer {house.secret}"})
        assert answer.status_code == 200 and answer.json()["object"] == "list"
        other = client.get("/no-such-page/", headers={"host": "testserver"})
        assert other.status_code == 404
        is_json = other.headers["content-type"] == "application/json"
        assert is_json == (application == "stillhouse.gateway.asgi:application")


def test_the_gateway_alone_loads_no_apps_and_no_models() -> None:
    code = (
        "import stillhouse.gateway.asgi, sys; from django.apps import apps; assert not apps.ready; "
        "assert not [name for name in sys.modules if name.endswith('.models') and 'stillhouse' in name]"
    )
    environment = {**os.environ, "PYTHONPATH": f"{settings.REPOSITORY / 'platform'}:{settings.REPOSITORY}"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
