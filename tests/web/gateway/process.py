"""The ASGI entries as processes of their own, started as production starts them."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from django.conf import settings

from stillhouse.embedded.home import reserve_port
from tests.waiting import wait_for
from tests.web.gateway.house import gateway_config

ALONE = "stillhouse.gateway.asgi:application"


@dataclass
class Server:
    """`client` asks it; `process` is there to be killed."""

    client: httpx.Client
    process: subprocess.Popen[bytes]


@contextmanager
def uvicorn(application: str = ALONE, **environment: str) -> Iterator[Server]:
    """The application on the test database, answering."""
    port = reserve_port()
    command = [sys.executable, "-m", "uvicorn", application, "--app-dir", "platform", "--host", "127.0.0.1"]
    options = ["--port", str(port), "--http", "stillhouse.gateway.protocol:LimitedHttp", "--no-access-log"]
    variables = {**os.environ, "DATABASE_URL": gateway_config().database_url, **environment}
    process = subprocess.Popen([*command, *options], cwd=settings.REPOSITORY, env=variables)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:

            def answers() -> bool:
                try:
                    return client.get("/v1/models").status_code == 401
                except httpx.TransportError:
                    return False

            wait_for(answers, 30)
            yield Server(client, process)
    finally:
        process.terminate()
        assert process.wait(timeout=15) in (0, -9, -15)


def kill_in_the_middle(
    server: Server, *, headers: Mapping[str, str], body: Mapping[str, Any], patience: float = 10
) -> None:
    """Ask for a chat as a stream, and `kill -9` the server once 40 lines have come, in `patience` seconds."""
    received = threading.Event()

    def stream() -> None:
        with (
            pytest.raises(httpx.TransportError),
            server.client.stream("POST", "/v1/chat/completions", headers=headers, json=body) as answer,
        ):
            for number, _ in enumerate(answer.iter_lines()):
                if number == 40:
                    received.set()

    reader = threading.Thread(target=stream)
    reader.start()
    assert received.wait(patience)
    server.process.send_signal(signal.SIGKILL)
    server.process.wait(10)
    reader.join(10)
