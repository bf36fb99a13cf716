"""Everything strange at once, at a gateway of its own process: others are answered, and memory is flat."""

import contextlib
import http.client
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tests.registry import DEMO_BASE
from tests.web.gateway.house import House
from tests.web.gateway.process import Server, uvicorn

MEBIBYTE = 1024 * 1024
ASK = [{"role": "user", "content": "Which clause is this?"}]
ROOM = 48 * MEBIBYTE
"""What the process may grow by: connections and their buffers, and one body as large as may be."""


def resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


def unknown_names(server: Server, secret: str, numbers: range) -> set[int]:
    """Statuses of requests for models that nobody has, each another one, over one connection."""
    client = http.client.HTTPConnection(urlsplit(str(server.client.base_url)).netloc, timeout=60)
    headers, seen = {"authorization": f"Bearer {secret}", "content-type": "application/json"}, set()
    for number in numbers:
        name = f"no-such-{number}@{number:0>100}"
        body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "x"}}]}}'
        client.request("POST", "/v1/chat/completions", body, headers)
        answer = client.getresponse()
        answer.read()
        seen.add(answer.status)
    client.close()
    return seen


def slow_client(server: Server, secret: str) -> socket.socket:
    """Half a body, and then nothing."""
    at = urlsplit(str(server.client.base_url))
    wire = socket.create_connection((at.hostname, at.port), timeout=30)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {secret}\r\n"
    wire.sendall(f"{head}content-length: 1000000\r\n\r\n".encode() + b'{"model": "' + b"x" * 1000)
    return wire


def header_bomb(server: Server) -> None:
    at = urlsplit(str(server.client.base_url))
    with (
        contextlib.suppress(ConnectionError),
        socket.create_connection((at.hostname, at.port), timeout=30) as wire,
    ):
        wire.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n")
        for number in range(2000):
            wire.sendall(b"x-%d: " % number + b"x" * 1000 + b"\r\n")


def large_body(server: Server, secret: str) -> int:
    def pieces() -> object:
        for _ in range(100):
            yield b"x" * MEBIBYTE

    headers = {"authorization": f"Bearer {secret}"}
    answer = server.client.post("/v1/chat/completions", headers=headers, content=pieces())  # type: ignore[arg-type]
    return answer.status_code


def test_strange_requests_harm_nobody(house: House, tmp_path: Path) -> None:
    with uvicorn(SPOOL_DIR=str(tmp_path)) as server, contextlib.ExitStack() as slow:
        assert unknown_names(server, house.secret, range(500)) == {404}
        assert large_body(server, house.secret) == 413
        before, ended, seen = resident(server.process.pid), threading.Event(), []

        def app() -> None:
            headers = {"authorization": f"Bearer {house.secret}"}
            with httpx.Client(base_url=server.client.base_url, headers=headers, timeout=60) as client:
                while not ended.is_set():
                    body = {"model": DEMO_BASE, "messages": ASK}
                    seen.append(client.post("/v1/chat/completions", json=body).status_code)

        good = threading.Thread(target=app)
        good.start()
        for _ in range(200):
            slow.enter_context(slow_client(server, house.secret))
        with ThreadPoolExecutor(8) as pool:
            names = [
                pool.submit(unknown_names, server, house.secret, range(start, start + 1000))
                for start in range(1000, 5000, 1000)
            ]
            bombs = [pool.submit(header_bomb, server) for _ in range(10)]
            bodies = [pool.submit(large_body, server, house.secret) for _ in range(5)]
            assert [one.result() for one in names] == [{404}] * 4
            assert [one.result() for one in bodies] == [413] * 5
            assert [one.result() for one in bombs] == [None] * 10
        ended.set()
        good.join(60)
        assert len(seen) > 10 and set(seen) == {200}
        assert resident(server.process.pid) - before < ROOM
        assert server.process.poll() is None
