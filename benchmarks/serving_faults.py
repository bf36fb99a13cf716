"""What has to be there again after a fault, and what must not grow: an engine killed, and memory."""

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from benchmarks.serving_bench import ALIAS, Bench, ask

ASK_AGAIN_SECONDS = 0.05
WARM_CYCLES = 50
"""After so many publications every cache has what it keeps, the engine's of adapters (16) included."""
READ_EVERY = 5


def measure_engine_kill(bench: Bench, versions: Sequence[Any]) -> None:
    """Seconds from the engine's being healthy until the platform calls all ready, and until an app that asks
    for each has its token. Beside it: as many tokens at once of the engine alone, a moment later."""
    from stillhouse.serving.models import Holding, Replica  # noqa: PLC0415

    engine, agent = bench.stage.engine, bench.stage.agent
    names = [version.serving_name for version in versions]
    before = Replica.objects.get().incarnation
    engine.kill()
    engine.start()
    engine.wait()
    healthy = time.perf_counter()
    apps = [threading.Thread(target=_wait_for, args=(bench, name)) for name in names]
    for one in apps:
        one.start()
    ready = Holding.objects.filter(version__in=list(versions), state=Holding.READY)
    ready = ready.exclude(replica__incarnation=before).filter(replica__healthy=True)
    bench.until(lambda: ready.count() == len(names), "all ready", pause=0.02)
    bench.figures["engine_kill_all_ready_s"] = round(time.perf_counter() - healthy, 2)
    for one in apps:
        one.join()
    bench.figures["engine_kill_all_back_s"] = round(time.perf_counter() - healthy, 2)
    bench.figures["engine_kill_versions"] = len(names)
    bench.figures["bare_tokens_at_once_after_kill_s"] = round(_at_once(bench, names), 2)
    bench.note_bare_token("after_kill")
    if agent.process is None or agent.process.poll() is not None:
        raise SystemExit("the agent ended")


def _wait_for(bench: Bench, name: str) -> None:
    """As an app would: again while no engine answers; then one request, which the gateway lets wait."""
    with httpx.Client(base_url=bench.stage.url, timeout=60) as client:
        bench.until(
            lambda: ask(client, name, bench.stage.key).status == 200, f"{name} back", pause=ASK_AGAIN_SECONDS
        )


def _at_once(bench: Bench, names: Sequence[str]) -> float:
    began = time.perf_counter()

    def one(name: str) -> None:
        with httpx.Client(base_url=bench.stage.engine_url, timeout=60) as client:
            ask(client, name)

    threads = [threading.Thread(target=one, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def measure_memory(bench: Bench, cycles: int, seconds: float) -> None:
    """Publish a new version, have it answer by a gateway of its own process, retire the one before: resident
    memory of gateway, web, agent and engine. No new cycle begins after `seconds`.

    `memory_growth_mb`: per 100 cycles, the slope of a line through the readings from `WARM_CYCLES` on.
    """
    seen: list[dict[str, float]] = []
    steps: dict[str, list[float]] = {}
    before, number, until = None, 0, time.monotonic() + seconds
    bench.stage.gateway.start()
    bench.stage.gateway.wait()
    with httpx.Client(base_url=bench.stage.gateway_url, timeout=60) as app:
        while number < cycles and time.monotonic() < until:
            before = _cycle(bench, app, before, steps)
            number += 1
            if number % READ_EVERY == 0:
                seen.append({"cycle": number, **bench.stage.memory_mb()})
    bench.figures["memory_cycles"] = number
    bench.figures["memory_cycle_s"] = {name: round(statistics.median(at), 3) for name, at in steps.items()}
    bench.figures["memory_mb"] = seen[:1] + seen[9::10]
    warm = [reading for reading in seen if reading["cycle"] >= WARM_CYCLES]
    if len(warm) > 2:
        names = bench.stage.memory_mb()
        bench.figures["memory_growth_mb"] = {name: _growth(warm, name) for name in names}


def _growth(readings: Sequence[dict[str, float]], name: str) -> float:
    cycles = [reading["cycle"] for reading in readings]
    slope, _ = statistics.linear_regression(cycles, [reading[name] for reading in readings])
    return round(100 * slope, 2)


def _cycle(bench: Bench, app: httpx.Client, before: Any, steps: dict[str, list[float]]) -> Any:
    """The version that answers now."""
    from stillhouse.publishing.actions import publish  # noqa: PLC0415
    from stillhouse.publishing.retirement import retire_version  # noqa: PLC0415
    from stillhouse.serving.queries import is_ready  # noqa: PLC0415

    stage = bench.stage

    def timed(name: str, step: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        done = step()
        steps.setdefault(name, []).append(time.perf_counter() - began)
        return done

    version = timed("made", stage.version)
    timed("ready", lambda: bench.until(lambda: is_ready(version), "the next version", pause=0.05))
    timed("published", lambda: publish(by=stage.lead, alias_name=ALIAS, version=version))
    answers = lambda: ask(app, ALIAS, stage.key).model == version.serving_name  # noqa: E731
    timed("answered", lambda: bench.until(answers, "its answer"))
    if before is not None:
        timed("retired", lambda: retire_version(by=stage.lead, version=before, reason="Measured."))
    return version
