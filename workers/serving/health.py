"""For probes and hooks on the same host: is this replica ready, and let it end gracefully.

`GET /ready` answers 200, or 503 with the reason. `POST /drain` tells the platform to send nothing new and
answers once the engine is idle: 200, or 504 after DRAIN_SECONDS.
"""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from workers.serving.agent import Agent

DRAIN_SECONDS = 540.0
"""An answer may take minutes; the pod's grace period is longer."""


def serve_health(agent: Agent, port: int) -> ThreadingHTTPServer:
    """Answer on loopback, in a thread of its own, as long as the process lives. Port 0 takes any."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _handler(agent))
    threading.Thread(target=server.serve_forever, name="agent-health", daemon=True).start()
    return server


def _handler(agent: Agent) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10.0  # for a caller that never ends its request

        def do_GET(self) -> None:
            reason = agent.not_ready() if self.path == "/ready" else "there is only /ready"
            self._answer(503 if reason else 200, reason or "ready")

        def do_POST(self) -> None:
            if self.path != "/drain":
                self._answer(404, "there is only /drain")
            elif agent.drain(DRAIN_SECONDS):
                self._answer(200, "drained")
            else:
                self._answer(504, "requests are still running")

        def _answer(self, status: int, text: str) -> None:
            body = f"{text}\n".encode()
            self.send_response(status)
            self.send_header("content-type", "text/plain; charset=utf-8")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
