"""Publishing, measured: versions that are placed, cold ones, flips under load, and the bare engine beside it.

Times run from before the action (one transaction, as the page's button calls it) to the end of a one-token
answer at an app that asks as soon as the gateway routes by it (a request sent before that has the version of
before, as it should).
"""

import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx

from benchmarks.serving_bench import ALIAS, SETTLE_SECONDS, Answer, Bench, ask

LOAD_CLIENTS = 2


def measure_placed(bench: Bench, versions: Sequence[Any], times: int) -> None:
    """In turns with tokens of the engine alone: of the version that answered last, and of another one."""
    from stillhouse.publishing.actions import publish, rollback  # noqa: PLC0415
    from stillhouse.publishing.models import Alias  # noqa: PLC0415

    old, new, third = versions
    publish(by=bench.stage.lead, alias_name=ALIAS, version=old)
    seconds: dict[str, list[float]] = {
        name: [] for name in ("token", "bare", "switch", "heard", "forward", "back")
    }
    for _ in range(times):
        bench.until(lambda: bench.resolves_to(old.serving_name), "the first version")
        seconds["token"].append(bench.until(lambda: bench.correct(old.serving_name), "its answer"))
        seconds["bare"].append(bench.bare_token(old.serving_name))
        began = time.perf_counter()
        publish(by=bench.stage.lead, alias_name=ALIAS, version=new)
        bench.until(lambda: bench.resolves_to(new.serving_name), "the new version")
        seconds["heard"].append(time.perf_counter() - began)
        bench.until(lambda: bench.correct(new.serving_name), "its answer")
        seconds["forward"].append(time.perf_counter() - began)
        seconds["switch"].append(bench.bare_token(third.serving_name))
        began = time.perf_counter()
        rollback(by=bench.stage.lead, alias=Alias.objects.get(name=ALIAS))
        bench.until(lambda: bench.resolves_to(old.serving_name), "the old version")
        bench.until(lambda: bench.correct(old.serving_name), "its answer")
        seconds["back"].append(time.perf_counter() - began)
    bench.note("bare_token", seconds["bare"])
    bench.note("bare_token_of_another", seconds["switch"])
    bench.note("one_token_through_gateway", seconds["token"])
    bench.note("publish_to_gateway_routes_by_it", seconds["heard"])
    bench.note("publish_to_first_correct_token_placed", seconds["forward"])
    bench.note("rollback_to_first_correct_token", seconds["back"])


def measure_cold(bench: Bench, times: int) -> None:
    """A version that is nowhere but in the store: publishing it, as the page's button does; and, of others,
    an app's request by the immutable name. Beside them the bare engine's load call and one token."""
    from stillhouse.publishing.actions import publish_once_loaded  # noqa: PLC0415

    accepted, published, requested, bare = [], [], [], []
    for number in range(times):
        version = cold_version(bench, 1.5 + number / 100)
        began = time.perf_counter()
        publish_once_loaded(by=bench.stage.lead, alias_name=ALIAS, version=version, seconds=60)
        accepted.append(time.perf_counter() - began)
        bench.until(lambda version=version: bench.ask().model == version.serving_name, "its answer")  # type: ignore[misc]
        published.append(time.perf_counter() - began)
        bench.until_proven([version])
        other = cold_version(bench, 1.7 + number / 100)
        began = time.perf_counter()
        bench.until(lambda other=other: bench.ask(other.serving_name).status == 200, "its answer")  # type: ignore[misc]
        requested.append(time.perf_counter() - began)
        bench.until_proven([other])
        bare.append(bare_load(bench, other, f"bare-{number}"))
    bench.note("publish_accepted_cold", accepted)
    bench.note("publish_to_first_token_cold", published)
    bench.note("request_to_first_token_cold", requested)
    bench.note("bare_load_to_first_token_beside_cold", bare)


def cold_version(bench: Bench, factor: float) -> Any:
    """A version that nobody has used for long: placed, and on no replica."""
    from django.utils import timezone  # noqa: PLC0415

    from stillhouse.adapters.models import AdapterVersion  # noqa: PLC0415
    from stillhouse.serving.models import Holding, Placement  # noqa: PLC0415

    bench.stage.agent.pause()
    version = bench.stage.version(factor)
    long_ago = timezone.now() - timedelta(days=30)
    Placement.objects.filter(version=version).update(created_at=long_ago)
    AdapterVersion.objects.filter(pk=version.pk).update(created_at=long_ago)
    bench.stage.agent.go_on()
    time.sleep(1.5)
    if Holding.objects.filter(version=version).exists():
        raise SystemExit("the version is not cold")
    return version


def measure_flips(bench: Bench, versions: Sequence[Any], flips: int) -> None:
    from stillhouse.publishing.actions import publish  # noqa: PLC0415

    publish(by=bench.stage.lead, alias_name=ALIAS, version=versions[0])
    time.sleep(SETTLE_SECONDS)
    history = [(time.perf_counter(), versions[0].serving_name)]
    crowd = Crowd(bench, history)
    crowd.start()
    for number in range(1, flips + 1):
        time.sleep(SETTLE_SECONDS + 0.3)
        version = versions[number % 2]
        publish(by=bench.stage.lead, alias_name=ALIAS, version=version)
        history.append((time.perf_counter(), version.serving_name))
    time.sleep(SETTLE_SECONDS + 0.3)
    crowd.stop()
    bench.figures |= {"flips": flips} | {f"flips_{name}": count for name, count in crowd.counts().items()}


def measure_peers(bench: Bench, version: Any, times: int) -> None:
    """The bare engine: load a new name, ask for a token; then, under load, unload and load one name."""
    bench.note("bare_load_to_first_token", [bare_load(bench, version, f"peer-{one}") for one in range(times)])
    folder = folder_of(bench, version)
    bench.load("peer", folder)
    statuses: list[int] = []
    ended = threading.Event()

    def client() -> None:
        with httpx.Client(base_url=bench.stage.engine_url, timeout=60) as mine:
            while not ended.is_set():
                statuses.append(ask(mine, "peer").status)

    clients = [threading.Thread(target=client) for _ in range(LOAD_CLIENTS)]
    for one in clients:
        one.start()
    for _ in range(times):
        time.sleep(SETTLE_SECONDS)
        bench.unload("peer")
        bench.load("peer", folder)
    ended.set()
    for one in clients:
        one.join()
    bench.figures |= {
        "bare_unload_load_flips": times,
        "bare_unload_load_requests": len(statuses),
        "bare_unload_load_errors": sum(status != 200 for status in statuses),
    }
    bench.unload("peer")


def bare_load(bench: Bench, version: Any, name: str) -> float:
    """Seconds of the engine's own load call and one token, of files that are there."""
    began = time.perf_counter()
    bench.load(name, folder_of(bench, version))
    bench.bare_token(name)
    seconds = time.perf_counter() - began
    bench.unload(name)
    return seconds


def folder_of(bench: Bench, version: Any) -> Path:
    return Path(bench.stage.agent.program.environment["ADAPTERS_DIR"]) / str(version.digest)


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
