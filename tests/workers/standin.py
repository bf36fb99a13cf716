"""A small real server in the place of the platform and its object store, for workers and agents."""

import hashlib
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from workers.contract import (
    ClaimAnswer,
    HelloAnswer,
    InputFile,
    Message,
    PoolWanted,
    Refusal,
    ReportAnswer,
    WantedFile,
)

Reply = tuple[int, Message | None]
JSON = "application/json"


@dataclass
class PlatformStandIn:
    """What it hands out and what it was told. Tests change its answers by assigning the callables."""

    claim: Callable[[str], Reply] = lambda job: (404, Refusal(code="unknown_job", message="No such job."))
    report: Callable[[dict[str, Any]], Reply] = lambda report: (200, ReportAnswer(action="continue"))
    finish: Callable[[dict[str, Any]], int] = lambda request: 200
    sync: Callable[[dict[str, Any]], Reply] = lambda report: (200, PoolWanted(wanted=[], poll_seconds=0.2))
    put_status: Callable[[str], int] = lambda name: 200
    cut_downloads_at: int = 0
    """Send no more than this many bytes a connection; 0 sends all."""
    objects: dict[str, bytes] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    """What was uploaded, in order."""
    reports: list[dict[str, Any]] = field(default_factory=list)
    syncs: list[dict[str, Any]] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    """Pools whose agents stood at the doorbell."""
    rings: threading.Event = field(default_factory=threading.Event)
    """Set: the doorbell rings, once."""
    claims: list[dict[str, Any]] = field(default_factory=list)
    finishes: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    hellos: list[dict[str, Any]] = field(default_factory=list)
    draining: bool = False
    unheard: bool = False
    hello_refusal: Refusal | None = None
    grants: int = 0
    downloads: int = 0
    tokens: set[str] = field(default_factory=set)
    url: str = ""

    def start(self) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        return server

    def claimed(
        self, kind: str, spec: Message | dict[str, Any], inputs: dict[str, bytes], **changes: Any
    ) -> None:
        """Have the next claims answered with this job."""
        files = [self.input(name, content) for name, content in inputs.items()]
        fields = {
            "job": "job-1",
            "kind": kind,
            "attempt": 1,
            "token": "token-1",
            "lease_seconds": 60,
            "report_seconds": 0.1,
            "spec": spec if isinstance(spec, dict) else spec.model_dump(mode="json"),
            "inputs": files,
            "subject": "run-1",
        }
        answer = ClaimAnswer.model_validate(fields | changes)
        self.claim = lambda job: (200, answer)

    def input(self, name: str, content: bytes) -> InputFile:
        self.objects[name] = content
        digest = hashlib.sha256(content).hexdigest()
        return InputFile(
            name=name, url=f"{self.url}/store/{name}?X-Amz-Signature=s", size=len(content), sha256=digest
        )

    def wanted(self, prefix: str, name: str, content: bytes) -> WantedFile:
        file = self.input(f"{prefix}-{name}", content)
        return WantedFile(name=name, url=file.url, size=file.size, sha256=file.sha256)


def _handler(platform: PlatformStandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self._body())
            platform.tokens.add(self.headers["authorization"])
            *_, subject, call = self.path.split("/")
            if call == "claim":
                platform.claims.append(body)
                self._reply(*platform.claim(subject))
            elif call == "report":
                platform.reports.append(body)
                self._reply(*platform.report(body))
            elif call == "uploads":
                platform.grants += body["checkpoint"] is None
                prefix = "" if body["checkpoint"] is None else f"{body['checkpoint']}/"
                grants = [
                    {"name": file["name"], "url": f"{platform.url}/store/{prefix}{file['name']}"}
                    for file in body["files"]
                ]
                self._send(200, json.dumps({"uploads": grants}).encode(), JSON)
            elif call == "hello":
                platform.hellos.append(body)
                refusal = platform.hello_refusal
                self._reply(
                    426 if refusal else 200,
                    refusal or HelloAnswer(draining=platform.draining, unheard=platform.unheard),
                )
            elif call == "checkpoints":
                platform.checkpoints.append(body)
                self._reply(200, None)
            elif call == "finish":
                platform.finishes.append(body)
                self._reply(platform.finish(body), None)
            elif call == "wait":
                platform.waits.append(subject)
                platform.rings.wait(10)
                platform.rings.clear()
                with suppress(OSError):  # the agent was stopped while it stood here
                    self._send(204, b"")
            else:
                platform.syncs.append(body)
                self._reply(*platform.sync(body))

        def do_GET(self) -> None:
            platform.downloads += 1
            content = platform.objects.get(urlsplit(self.path).path.removeprefix("/store/"))
            if content is None:
                self._send(404, b"<Error><Code>NoSuchKey</Code></Error>", "application/xml")
                return
            start = (
                int(self.headers["range"].removeprefix("bytes=").removesuffix("-"))
                if "range" in self.headers
                else 0
            )
            self.send_response(206 if start else 200)
            self.send_header("content-length", str(len(content) - start))
            self.send_header("etag", '"0"')
            self.end_headers()
            end = start + platform.cut_downloads_at if platform.cut_downloads_at else len(content)
            self.wfile.write(content[start:end])
            self.close_connection = end < len(content)

        def do_PUT(self) -> None:
            content, name = self._body(), urlsplit(self.path).path.removeprefix("/store/")
            status = platform.put_status(name)
            if status == 200:
                platform.stored[name] = content
            self._send(status, b"")

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers["content-length"]))

        def _reply(self, status: int, message: Message | None) -> None:
            self._send(status, message.model_dump_json().encode() if message else b"{}", JSON)

        def _send(self, status: int, content: bytes, kind: str = "application/octet-stream") -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("etag", '"0"')
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
