"""What publishing costs, with a real engine: one JSON line.

    python benchmarks/serving.py --base var/bases/smollm2-135m-instruct [--adapter FOLDER] [--cycles 200]

Which version answered is read from the answer itself: every version moves the model by another amount, so the
log-probability of its first token under one prompt tells them apart. Times run from before the action (one
transaction, as the page's button calls it) to the end of a one-token answer at an app that asks as soon as
the gateway routes by it (a request sent before that has the version of before, as it should).
Beside it: the engine's own load call and one token, and unload + load of one name, as people do without us.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

from benchmarks.serving_stage import Stage, set_up, train  # noqa: E402

ALIAS = "measured"
PROMPT = [{"role": "user", "content": "Which clause is this? The tenant pays on the first of each month."}]
SETTLE_SECONDS = 0.5
"""The goal for a publication: a request sent later than this after it has to have the new version."""
LOAD_CLIENTS = 2


@dataclass
class Fingerprints:
    """Log-probability of the first token under `PROMPT`, by serving name."""

    known: dict[str, float] = field(default_factory=dict)

    @property
    def apart(self) -> float:
        """The smallest distance between two of them, in nats."""
        values = sorted(self.known.values())
        return min((b - a for a, b in pairwise(values)), default=1.0)

    def whose(self, value: float) -> str:
        """The version that answers so; empty when it is nearer to none than half their distance."""
        name = min(self.known, key=lambda one: abs(self.known[one] - value))
        return name if abs(self.known[name] - value) < self.apart / 2 else ""


@dataclass(frozen=True)
class Answer:
    status: int
    model: str = ""
    """As the answer says."""
    value: float = 0.0
    """Its fingerprint."""


def ask(client: httpx.Client, model: str, key: str = "") -> Answer:
    """One token; any failure of the connection counts as status 0."""
    body = {"model": model, "messages": PROMPT, "max_tokens": 1, "temperature": 0, "logprobs": True}
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = client.post("/v1/chat/completions", json=body, headers=headers)
    except httpx.TransportError:
        return Answer(0)
    if answer.status_code != 200:
        return Answer(answer.status_code)
    said = answer.json()
    return Answer(200, said["model"], said["choices"][0]["logprobs"]["content"][0]["logprob"])


class Bench:
    """The stage with its app, and what was measured."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.app = httpx.Client(base_url=stage.url, timeout=60)
        self.direct = httpx.Client(base_url=stage.engine_url, timeout=60)
        self.prints = Fingerprints()
        self.figures: dict[str, Any] = {}

    def ask(self, model: str = ALIAS) -> Answer:
        return ask(self.app, model, self.stage.key)

    def note(self, name: str, seconds: Sequence[float]) -> None:
        """Median and 95th percentile, in milliseconds."""
        at = sorted(seconds)
        self.figures[f"{name}_p50_ms"] = round(statistics.median(at) * 1000, 1)
        self.figures[f"{name}_p95_ms"] = round(at[min(len(at) - 1, int(0.95 * len(at)))] * 1000, 1)
        self.figures[f"{name}_times"] = len(at)

    def until(
        self, is_it: Callable[[], bool], what: str, seconds: float = 120, pause: float = 0.005
    ) -> float:
        """Seconds it took."""
        began = time.perf_counter()
        while not is_it():
            if time.perf_counter() - began > seconds:
                raise SystemExit(f"{what}: not within {seconds:.0f} s")
            time.sleep(pause)
        return time.perf_counter() - began

    def note_bare_token(self, when: str) -> None:
        """One token of the engine alone, at that time: what the machine has to give."""
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            ask(self.direct, next(iter(self.prints.known)))
            seconds.append(time.perf_counter() - began)
        self.note(f"bare_token_{when}", seconds)

    def correct(self, name: str) -> bool:
        answer = self.ask()
        return answer.status == 200 and self.prints.whose(answer.value) == name

    def resolves_to(self, name: str) -> bool:
        """What the gateway would send the alias's next request to; costs the engine nothing."""
        headers = {"authorization": f"Bearer {self.stage.key}"}
        return bool(self.app.get(f"/v1/models/{ALIAS}", headers=headers).json().get("root") == name)

    # ---- the measurements, in order

    def take_fingerprints(self, names: Sequence[str]) -> None:
        spread = 0.0
        for name in names:
            values = [ask(self.direct, name).value for _ in range(5)]
            self.prints.known[name] = statistics.median(values)
            spread = max(spread, max(values) - min(values))
        self.figures["fingerprints_apart_nats"] = round(self.prints.apart, 4)
        self.figures["fingerprints_spread_nats"] = round(spread, 4)
        if self.prints.apart < 4 * spread or self.prints.apart < 1e-3:
            raise SystemExit(f"the versions cannot be told apart: {self.prints.known}")

    def measure_placed(self, versions: Sequence[Any], times: int) -> None:
        from stillhouse.publishing.actions import publish, rollback  # noqa: PLC0415
        from stillhouse.publishing.models import Alias  # noqa: PLC0415

        old, new = versions[:2]
        publish(by=self.stage.lead, alias_name=ALIAS, version=old)
        seconds: dict[str, list[float]] = {name: [] for name in ("token", "heard", "forward", "back")}
        for _ in range(times):
            self.until(lambda: self.resolves_to(old.serving_name), "the first version")
            seconds["token"].append(self.until(lambda: self.correct(old.serving_name), "its answer"))
            began = time.perf_counter()
            publish(by=self.stage.lead, alias_name=ALIAS, version=new)
            self.until(lambda: self.resolves_to(new.serving_name), "the new version")
            seconds["heard"].append(time.perf_counter() - began)
            self.until(lambda: self.correct(new.serving_name), "its answer")
            seconds["forward"].append(time.perf_counter() - began)
            began = time.perf_counter()
            rollback(by=self.stage.lead, alias=Alias.objects.get(name=ALIAS))
            self.until(lambda: self.resolves_to(old.serving_name), "the old version")
            self.until(lambda: self.correct(old.serving_name), "its answer")
            seconds["back"].append(time.perf_counter() - began)
        self.note("one_token_through_gateway", seconds["token"])
        self.note("publish_to_gateway_routes_by_it", seconds["heard"])
        self.note("publish_to_first_correct_token_placed", seconds["forward"])
        self.note("rollback_to_first_correct_token", seconds["back"])

    def measure_cold(self, times: int) -> None:
        """A version that is nowhere but in the store: publishing is tried until it is taken, as the sentence
        of the refusal says; and, of others, an app's request by the immutable name."""
        from stillhouse.core.errors import UserError  # noqa: PLC0415
        from stillhouse.publishing.actions import publish  # noqa: PLC0415

        published, requested = [], []
        for number in range(times):
            version = self.cold_version(1.5 + number / 100)
            began = time.perf_counter()

            def accepted(version: Any = version) -> bool:
                try:
                    return bool(publish(by=self.stage.lead, alias_name=ALIAS, version=version))
                except UserError:
                    return False

            self.until(accepted, "publishing a cold version", pause=0.2)
            self.until(lambda version=version: self.ask().model == version.serving_name, "its answer")  # type: ignore[misc]
            published.append(time.perf_counter() - began)
            other = self.cold_version(1.7 + number / 100)
            began = time.perf_counter()
            self.until(lambda other=other: self.ask(other.serving_name).status == 200, "its answer")  # type: ignore[misc]
            requested.append(time.perf_counter() - began)
        self.note_bare_token("after_cold")
        self.note("publish_to_first_token_cold", published)
        self.note("request_to_first_token_cold", requested)

    def cold_version(self, factor: float) -> Any:
        """A version that nobody has used for long: placed, and on no replica."""
        from datetime import timedelta  # noqa: PLC0415

        from django.utils import timezone  # noqa: PLC0415

        from stillhouse.adapters.models import AdapterVersion  # noqa: PLC0415
        from stillhouse.serving.models import Holding, Placement  # noqa: PLC0415

        self.stage.agent.pause()
        version = self.stage.version(factor)
        long_ago = timezone.now() - timedelta(days=30)
        Placement.objects.filter(version=version).update(created_at=long_ago)
        AdapterVersion.objects.filter(pk=version.pk).update(created_at=long_ago)
        self.stage.agent.go_on()
        time.sleep(1.5)
        if Holding.objects.filter(version=version).exists():
            raise SystemExit("the version is not cold")
        return version

    def measure_flips(self, versions: Sequence[Any], flips: int) -> None:
        from stillhouse.publishing.actions import publish  # noqa: PLC0415

        publish(by=self.stage.lead, alias_name=ALIAS, version=versions[0])
        time.sleep(SETTLE_SECONDS)
        history = [(time.perf_counter(), versions[0].serving_name)]
        crowd = Crowd(self, history)
        crowd.start()
        for number in range(1, flips + 1):
            time.sleep(SETTLE_SECONDS + 0.3)
            version = versions[number % 2]
            publish(by=self.stage.lead, alias_name=ALIAS, version=version)
            history.append((time.perf_counter(), version.serving_name))
        time.sleep(SETTLE_SECONDS + 0.3)
        crowd.stop()
        self.figures |= {"flips": flips} | {f"flips_{name}": count for name, count in crowd.counts().items()}

    def measure_engine_kill(self, names: Sequence[str]) -> None:
        engine, agent = self.stage.engine, self.stage.agent
        engine.kill()
        engine.start()
        engine.wait()
        healthy = time.perf_counter()
        back = [threading.Thread(target=self._wait_for, args=(name,)) for name in names]
        for one in back:
            one.start()
        for one in back:
            one.join()
        self.figures["engine_kill_all_back_s"] = round(time.perf_counter() - healthy, 2)
        self.figures["engine_kill_versions"] = len(names)
        self.note_bare_token("after_kill")
        if agent.process is None or agent.process.poll() is not None:
            raise SystemExit("the agent ended")

    def _wait_for(self, name: str) -> None:
        """As an app would: one request, which the gateway lets wait."""
        with httpx.Client(base_url=self.stage.url, timeout=60) as client:
            self.until(lambda: ask(client, name, self.stage.key).status == 200, f"{name} back")

    def measure_memory(self, cycles: int, seconds: float) -> None:
        """Publish a new version, retire the one before; resident memory of web, agent and engine.

        No new cycle begins after `seconds`.
        """
        from stillhouse.publishing.actions import publish  # noqa: PLC0415
        from stillhouse.publishing.retirement import retire_version  # noqa: PLC0415
        from stillhouse.serving.queries import is_ready  # noqa: PLC0415

        seen: list[dict[str, float]] = []
        before, number, until = None, 0, time.monotonic() + seconds
        for number in range(cycles):
            if time.monotonic() > until:
                break
            version = self.stage.version()
            self.until(lambda version=version: is_ready(version), "the next version")  # type: ignore[misc]
            publish(by=self.stage.lead, alias_name=ALIAS, version=version)
            self.until(lambda version=version: self.ask().model == version.serving_name, "its answer")  # type: ignore[misc]
            if before is not None:
                retire_version(by=self.stage.lead, version=before, reason="Measured.")
            before = version
            if number % max(1, cycles // 20) == 0 or number == cycles - 1:
                seen.append({"cycle": number + 1, **self.memory()})
        self.figures["memory_cycles"] = number + 1
        self.figures["memory_mb"] = seen

    def memory(self) -> dict[str, float]:
        stage = self.stage
        return {one.program.name: one.memory_mb() for one in (stage.web, stage.agent, stage.engine)}

    def measure_peers(self, version: Any, times: int) -> None:
        """The bare engine: load a new name, ask for a token; then, under load, unload and load one name."""
        from workers.contract import AdapterManifest  # noqa: PLC0415

        folder = Path(self.stage.agent.program.environment["ADAPTERS_DIR"]) / version.digest
        AdapterManifest.model_validate_json((folder / "manifest.json").read_bytes())
        loads = []
        for number in range(times):
            began = time.perf_counter()
            self.load(f"peer-{number}", folder)
            if ask(self.direct, f"peer-{number}").status != 200:
                raise SystemExit("the engine did not answer for what it loaded")
            loads.append(time.perf_counter() - began)
            self.direct.post("/v1/unload_lora_adapter", json={"lora_name": f"peer-{number}"})
        self.note("bare_load_to_first_token", loads)
        self.load("peer", folder)
        statuses: list[int] = []
        ended = threading.Event()

        def client() -> None:
            with httpx.Client(base_url=self.stage.engine_url, timeout=60) as mine:
                while not ended.is_set():
                    statuses.append(ask(mine, "peer").status)

        clients = [threading.Thread(target=client) for _ in range(LOAD_CLIENTS)]
        for one in clients:
            one.start()
        for _ in range(times):
            time.sleep(SETTLE_SECONDS)
            self.direct.post("/v1/unload_lora_adapter", json={"lora_name": "peer"})
            self.load("peer", folder)
        ended.set()
        for one in clients:
            one.join()
        self.figures |= {
            "bare_unload_load_flips": times,
            "bare_unload_load_requests": len(statuses),
            "bare_unload_load_errors": sum(status != 200 for status in statuses),
        }
        self.direct.post("/v1/unload_lora_adapter", json={"lora_name": "peer"})

    def load(self, name: str, folder: Path) -> None:
        body = {"lora_name": name, "lora_path": str(folder)}
        self.direct.post("/v1/load_lora_adapter", json=body).raise_for_status()


class Crowd:
    """Apps that ask without a pause while versions change under them."""

    def __init__(self, bench: Bench, history: list[tuple[float, str]]) -> None:
        self._bench, self._history = bench, history
        self._answers: list[tuple[float, Answer]] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(LOAD_CLIENTS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self._bench.stage.url, timeout=60) as client:
            while not self._ended.is_set():
                sent = time.perf_counter()
                self._answers.append((sent, ask(client, ALIAS, self._bench.stage.key)))

    def counts(self) -> dict[str, int]:
        """Answers; errors; those whose tokens are another version's than they say; those that came from an
        earlier version although they were sent more than half a second after its end."""
        good = [(sent, answer) for sent, answer in self._answers if answer.status == 200]
        mislabelled = sum(self._bench.prints.whose(answer.value) != answer.model for _, answer in good)
        stale = sum(self._is_stale(sent, answer.model) for sent, answer in good)
        errors = len(self._answers) - len(good)
        return {"answers": len(good), "errors": errors, "wrong_version": mislabelled, "stale": stale}

    def _is_stale(self, sent: float, model: str) -> bool:
        """What was published at `sent`, or since then, or within the half second before, may answer."""
        may = {name for at, name in self._history if at > sent - SETTLE_SECONDS}
        settled = [name for at, name in self._history if at <= sent - SETTLE_SECONDS]
        return model not in may and model != (settled or [""])[-1]


def run(stack: ExitStack, options: argparse.Namespace) -> dict[str, Any]:
    folder = options.adapter
    if folder is None:
        folder = train(
            options.base, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="serving-")))
        )
    stage = set_up(stack, options.base, folder, options.engine_threads)
    bench = Bench(stage)
    began = time.perf_counter()
    versions = [stage.version(factor) for factor in (1.0, 1.2, 1.4)]
    names = [version.serving_name for version in versions]
    bench.until(lambda: all(ask(bench.direct, name).status == 200 for name in names), "loading", 300)
    from stillhouse.serving.queries import is_ready  # noqa: PLC0415

    bench.until(lambda: all(is_ready(version) for version in versions), "the proofs", 300)
    bench.take_fingerprints(names)
    parts: dict[str, Callable[[], None]] = {
        "placed": lambda: bench.measure_placed(versions, options.times),
        "cold": lambda: bench.measure_cold(max(1, options.times // 4)),
        "flips": lambda: bench.measure_flips(versions, options.flips),
        "kill": lambda: bench.measure_engine_kill(names),
        "peers": lambda: bench.measure_peers(versions[0], options.times),
        "memory": lambda: bench.measure_memory(options.cycles, options.memory_seconds),
    }
    for name in options.only or parts:
        print(f"{time.perf_counter() - began:6.0f} s  {name}", file=sys.stderr, flush=True)
        parts[name]()
        print(json.dumps(bench.figures), file=sys.stderr, flush=True)
    return bench.figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="folder of the demonstration base")
    parser.add_argument("--adapter", type=Path, help="a trained adapter of it; trained anew without")
    parser.add_argument("--engine-threads", type=int, help="of the engine; by default as many as cores")
    parser.add_argument("--times", type=int, default=20, help="publications and rollbacks")
    parser.add_argument("--flips", type=int, default=100)
    parser.add_argument("--cycles", type=int, default=200, help="publications and retirements")
    parser.add_argument("--memory-seconds", type=float, default=3600, help="of the cycles at most")
    parser.add_argument("--only", nargs="*", help="placed cold flips kill peers memory")
    options = parser.parse_args()
    figures = {
        "benchmark": "serving",
        "cores": os.cpu_count(),
        "engine_threads": options.engine_threads or os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }
    with ExitStack() as stack:
        figures |= run(stack, options)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
