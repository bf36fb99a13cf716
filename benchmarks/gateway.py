"""What the gateway adds: latency at one connection, requests a second at sixteen, time per chunk.

    python benchmarks/gateway.py [--seconds 5] [--litellm var/peers/litellm/bin/python]

Beside each other in one run: a fast fake engine called directly, the same engine through one gateway process
(a key with limits and a budget, routing, reasoning split, the ledger on disk and in a real Postgres), and the
same engine through LiteLLM's proxy (`gateway_peer.py`). The processor time per request is measured too: on a
busy machine it is the figure to compare. At the end the ledger is compared with what the engine was asked.
Ends with one JSON line. `make bench-gateway` installs the peer and runs all of it.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

from benchmarks import gateway_peer  # noqa: E402
from benchmarks.report import Line  # noqa: E402
from stillhouse.embedded.home import reserve_port  # noqa: E402

Answer = TypeVar("Answer")
CONNECTIONS = 16
CHUNKS = 64
CHUNK_SECONDS = 0.002
WARM_UP_SECONDS = 1.0
ROUNDS = 4
QUESTION = "Which type of clause is this, and what does it oblige the supplier to do? " * 4


# ---- the fake engine, an ASGI application of its own process


def _chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "base"}
    usage = {"prompt_tokens": 80, "completion_tokens": 1, "total_tokens": 81}
    return b"data: " + json.dumps({**head, "choices": [choice], "usage": usage}).encode() + b"\n\n"


_ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "base",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "<think>\nIt speaks of fees.\n</think>\n\n" + "{} " * 60,
                },
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 80, "completion_tokens": 70, "total_tokens": 150},
    }
).encode()
TOKENS_WHOLE, TOKENS_STREAMED = 150, 81
"""Of one answer, prompt included, as the engine's usage says. Its stream says 1 token of answer all along."""
_CHUNKS = [
    _chunk({"role": "assistant", "content": ""}),
    *[_chunk({"content": " word"})] * CHUNKS,
    _chunk({}, "stop"),
]


async def engine(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    """Answers every chat request with the same bytes."""
    if scope["type"] != "http":
        return
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    if b'"stream":true' in body:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for chunk in _CHUNKS:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await asyncio.sleep(CHUNK_SECONDS)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        return
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_ANSWER))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _ANSWER})


# ---- the load


@dataclass
class Target:
    port: int
    pid: int
    key: str
    model: str
    sent: int = 0
    """Requests so far."""
    whole: int = 0
    """Of them, those that did not stream."""

    def request(self, *, stream: bool) -> bytes:
        self.sent += 1
        self.whole += not stream
        body = {"model": self.model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
        raw = json.dumps({**body, "stream": True} if stream else body, separators=(",", ":")).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\n"
            f"authorization: Bearer {self.key}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(raw)}\r\n\r\n"
        )
        return head.encode() + raw


class Wire:
    """One keep-alive connection. Small on purpose: it shares the machine with what is measured."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def open(self) -> "Wire":
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._target.port)
        return self

    def close(self) -> None:
        self._writer.close()

    async def ask(self) -> bool:
        """One whole answer; whether it was a good one."""
        self._writer.write(self._target.request(stream=False))
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        await self._reader.readexactly(length)
        return head.startswith(b"HTTP/1.1 200")

    async def stream(self) -> tuple[float, float]:
        """Seconds to the first chunk of text, and to the end of the stream."""
        began = time.perf_counter()
        self._writer.write(self._target.request(stream=True))
        await self._reader.readuntil(b" word")
        first = time.perf_counter() - began
        await self._reader.readuntil(b"[DONE]")
        await self._reader.readuntil(b"0\r\n\r\n")
        return first, time.perf_counter() - began


async def latency(target: Target, seconds: float) -> list[float]:
    """Milliseconds of each request of one connection."""
    wire = await Wire(target).open()
    await _for(WARM_UP_SECONDS / ROUNDS, wire.ask)
    times: list[float] = []

    async def one() -> bool:
        began = time.perf_counter()
        good = await wire.ask()
        times.append((time.perf_counter() - began) * 1000)
        return good

    await _for(seconds, one)
    wire.close()
    return times


def processor_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Load:
    """What came of one turn of load."""

    rate: float
    """Requests a second over all connections."""
    errors: int
    """Answers that were not 200."""
    processor_ms: float
    """Of the target's process, for one request."""


async def throughput(target: Target, seconds: float) -> list[Load]:
    wires = [await Wire(target).open() for _ in range(CONNECTIONS)]
    await asyncio.gather(*(_for(WARM_UP_SECONDS / ROUNDS, wire.ask) for wire in wires))
    processor, began = processor_seconds(target.pid), time.perf_counter()
    results = await asyncio.gather(*(_for(seconds, wire.ask) for wire in wires))
    spent, processor = time.perf_counter() - began, processor_seconds(target.pid) - processor
    for wire in wires:
        wire.close()
    answers = sum(len(result) for result in results)
    errors = sum(result.count(False) for result in results)
    return [Load(answers / spent, errors, processor / answers * 1000)]


async def streams(target: Target, seconds: float) -> list[tuple[float, float]]:
    """Of each stream in milliseconds: to the first chunk, and of the rest per chunk."""
    wire = await Wire(target).open()
    await _for(WARM_UP_SECONDS / ROUNDS, wire.stream)
    results = await _for(seconds, wire.stream)
    wire.close()
    return [(first * 1000, (end - first) / CHUNKS * 1000) for first, end in results]


async def in_rounds(
    targets: dict[str, Target], seconds: float, measure: Callable[[Target, float], Awaitable[list[Answer]]]
) -> dict[str, list[Answer]]:
    """Each target for `seconds` in all, taking turns: what else the machine does then meets all of them."""
    found: dict[str, list[Answer]] = {name: [] for name in targets}
    for _ in range(ROUNDS):
        for name, target in targets.items():
            found[name] += await measure(target, seconds / ROUNDS)
    return found


async def _for(seconds: float, do: Callable[[], Awaitable[Answer]]) -> list[Answer]:
    end = time.perf_counter() + seconds
    results = []
    while time.perf_counter() < end:
        results.append(await do())
    return results


# ---- the processes


def _serve(application: str, environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    """One uvicorn process, as production starts it; returns when it listens."""
    port = reserve_port()
    command = [sys.executable, "-m", "uvicorn", application, "--app-dir", "platform", "--host", "127.0.0.1"]
    options = [
        "--port",
        str(port),
        "--loop",
        "uvloop",
        "--http",
        "httptools",
        "--no-access-log",
        "--log-level",
        "warning",
    ]
    process = subprocess.Popen([*command, *options], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process, port
        time.sleep(0.05)
    process.kill()
    raise SystemExit(f"{application} did not start")


def _publish(engine_port: int) -> tuple[str, str]:
    """An alias published on a replica that is the fake engine, and a key with limits: (key, alias)."""
    from django.core.management import call_command  # noqa: PLC0415

    from tests.web.gateway.engine import Engine  # noqa: PLC0415
    from tests.web.gateway.house import make_house  # noqa: PLC0415

    call_command("migrate", verbosity=0)
    from stillhouse.accounts.actions import create_key  # noqa: PLC0415
    from stillhouse.accounts.keys import KeyTerms  # noqa: PLC0415
    from stillhouse.publishing.actions import publish  # noqa: PLC0415

    house = make_house(Engine(models=set(), url=f"http://127.0.0.1:{engine_port}"))
    version = house.approved()
    terms = KeyTerms(requests_per_minute=10**6, tokens_per_minute=10**9, monthly_tokens=10**12)
    _, secret = create_key(by=house.lead, name="benchmark", terms=terms)
    return secret, publish(by=house.lead, alias_name="clauses", version=version).alias.name


def _ledger() -> dict[str, int]:
    """What the ledger has: rows, their tokens, and the tokens of the hours that were summed as they came."""
    from django.db.models import Count, F, Sum  # noqa: PLC0415

    from stillhouse.usage.models import UsageHour, UsageRecord  # noqa: PLC0415

    tokens = Sum(F("prompt_tokens") + F("completion_tokens"))
    rows = UsageRecord.objects.aggregate(rows=Count("id"), tokens=tokens)
    hours = UsageHour.objects.aggregate(rows=Sum("requests"), tokens=tokens)
    return {
        "ledger_rows": rows["rows"],
        "ledger_tokens": rows["tokens"] or 0,
        "hours_rows": hours["rows"] or 0,
        "hours_tokens": hours["tokens"] or 0,
    }


async def _measure(targets: dict[str, Target], seconds: float) -> dict[str, Any]:
    """Every figure of every target; what the others add to `direct`."""
    figures: dict[str, Any] = {
        "seconds_each": seconds,
    }
    latencies = await in_rounds(targets, seconds, latency)
    for share in (50, 99):
        at = {name: statistics.quantiles(times, n=100)[share - 1] for name, times in latencies.items()}
        figures |= _beside_direct(at, f"p{share}_ms")
    loads = await in_rounds(targets, seconds, throughput)
    for name, turns in loads.items():
        figures[f"{name}_errors"] = sum(turn.errors for turn in turns)
        figures[f"{name}_rps_{CONNECTIONS}"] = round(statistics.median(turn.rate for turn in turns))
        spent = statistics.median(turn.processor_ms for turn in turns)
        figures[f"{name}_processor_ms_per_request"] = round(spent, 3)
    streamed = await in_rounds(targets, seconds, streams)
    firsts = {name: statistics.median(first for first, _ in seen) for name, seen in streamed.items()}
    chunks = {name: statistics.median(rest for _, rest in seen) for name, seen in streamed.items()}
    figures["streams_each"] = {name: len(seen) for name, seen in streamed.items()}
    figures |= _beside_direct(firsts, "first_token_ms") | _beside_direct(chunks, "per_chunk_ms")
    if "litellm" in targets:
        pairs = zip(loads["gateway"], loads["litellm"], strict=True)
        times = [round(ours.rate / theirs.rate, 1) for ours, theirs in pairs]
        figures["times_litellm_rps"], figures["in_turns"] = statistics.median(times), times
    return figures


def _beside_direct(values: dict[str, float], unit: str) -> dict[str, float]:
    direct = values["direct"]
    added = {f"{name}_added_{unit}": round(value - direct, 4) for name, value in values.items()}
    del added[f"direct_added_{unit}"]
    return {f"direct_{unit}": round(direct, 4), **added}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each figure is measured")
    parser.add_argument("--litellm", type=Path, metavar="PYTHON", help="of the environment with LiteLLM")
    options = parser.parse_args()

    line = Line("gateway")
    with ExitStack() as stack:
        figures = _run(stack, options.seconds, options.litellm)
    line.end(figures)


def _run(stack: ExitStack, seconds: float, litellm: Path | None) -> dict[str, Any]:
    from tests.stores import Stores  # noqa: PLC0415

    stores = Stores()
    os.environ.update(stores.settings(), DJANGO_SETTINGS_MODULE="stillhouse.settings", LOG_LEVEL="INFO")
    import django  # noqa: PLC0415

    django.setup()
    stack.callback(stores.stop)
    stores.start()
    engine_process, engine_port = _serve("benchmarks.gateway:engine", dict(os.environ))
    stack.callback(_end, engine_process)
    key, alias = _publish(engine_port)
    gateway_process, gateway_port = _serve("stillhouse.gateway.asgi:application", dict(os.environ))
    stack.callback(_end, gateway_process)
    targets = {
        "direct": Target(engine_port, engine_process.pid, "", "base"),
        "gateway": Target(gateway_port, gateway_process.pid, key, alias),
    }
    figures: dict[str, Any] = {}
    if litellm is not None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="litellm-")))
        port = reserve_port()
        peer = gateway_peer.start(litellm, engine_port=engine_port, port=port, folder=folder)
        stack.callback(_end, peer)
        targets["litellm"] = Target(port, peer.pid, gateway_peer.KEY, gateway_peer.MODEL)
        figures["litellm"] = f"{gateway_peer.version(litellm)}, one worker, master key, no database"
    figures |= asyncio.run(_measure(targets, seconds))
    time.sleep(3)
    gateway = targets["gateway"]
    streamed = gateway.sent - gateway.whole
    expected = gateway.whole * TOKENS_WHOLE + streamed * TOKENS_STREAMED
    return figures | {"requests": gateway.sent, "tokens": expected, **_ledger()}


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=10)


if __name__ == "__main__":
    main()
