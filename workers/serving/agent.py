"""The loop: look at the engine, tell the platform, hear what is wanted, do the next thing.

Nothing it meets ends it.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from workers.contract import HeldVersion, PoolReport, PoolWait, PoolWanted, Sha256, WantedVersion
from workers.serving.engine import Engine, EngineView
from workers.serving.files import DIGEST, AdapterCache, VersionRefused, check_name
from workers.serving.plan import (
    UNLOAD_AFTER_SECONDS,
    Action,
    LearnBase,
    Load,
    Situation,
    held_now,
    is_ready,
    next_action,
)
from workers.serving.settings import AgentSettings
from workers.serving.work import Stopped, Work
from workers.wire.api import PlatformAPI, Refused, Unreachable, growing_pauses

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
"""Between looks while the platform has not said how often."""
SHORTEST_POLL, LONGEST_POLL = 0.2, 30.0
AWAY_POLL = 0.05
"""Between looks at an engine that does not answer: apps wait for it."""
WAIT_SECONDS = 3.0
"""Of one call at the platform's doorbell. A web process that is being stopped waits for it to end."""


class Agent:
    """One replica's agent. The main thread looks and reports; one worker thread does what takes time."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._platform = PlatformAPI(settings.url, settings.token)
        self._engine = Engine(settings.engine_url)
        self._cache = AdapterCache(settings.adapters_dir)
        self._unwanted_since: dict[str, float] = {}
        self._unused_since: dict[Sha256, float] = {}
        self._refused: list[HeldVersion] = []
        self._wanted: list[WantedVersion] | None = None
        self._poll_seconds = POLL_SECONDS
        self._view = EngineView(healthy=False)
        self._reported = ""
        """The incarnation that the platform was told of last."""
        self._idle_since: float | None = None
        self._busy: Future[None] | None = None
        self._last_trouble = ""
        self._leaving = False
        self._told_leaving = threading.Event()
        self._stopping = threading.Event()
        self._wake = threading.Event()
        """There is a reason to look now."""
        self._work = Work(settings, self._engine, self._cache, wake=self._wake, stopping=self._stopping)

    def stop(self) -> None:
        """End `run` soon. What the engine holds stays: the next agent adopts it."""
        self._stopping.set()
        self._wake.set()

    def not_ready(self) -> str:
        """Why this replica should not join its pool yet, in words; empty when it may: the engine answers, the
        platform was heard, and every version that apps are answered with is proven here."""
        if self._leaving:
            return "it is about to stop"
        if not self._view.healthy:
            return "the engine does not answer"
        if self._wanted is None:
            return "the platform has not been heard yet"
        required = [version for version in self._wanted if version.required]
        records, view = self._work.records, self._view
        missing = [one.name for one in required if not is_ready(one.name, records.get(one.digest), view)]
        return f"{len(missing)} of {len(required)} published versions are not ready" if missing else ""

    def drain(self, seconds: float) -> bool:
        """Tell the platform to send nothing new, then wait until the engine is idle.

        Returns whether it is, after at most `seconds`. There is no way back but a restart of the agent.
        """
        deadline = time.monotonic() + seconds
        self._leaving = True
        self._told_leaving.wait(seconds)
        settled = time.monotonic() + UNLOAD_AFTER_SECONDS  # what a gateway sent before it heard
        while time.monotonic() < deadline and not self._stopping.wait(0.5):
            if time.monotonic() >= settled and self._view.requests in (0, None):
                return True
        return False

    def run(self) -> None:
        threading.Thread(target=self._hear_bell, name="agent-bell", daemon=True).start()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="agent-work") as pool:
            self._guarded(self._adopt)
            while not self._stopping.is_set():
                self._guarded(self._look)
                if self._view.healthy and self._view.incarnation != self._reported:
                    self._begin_next(pool)  # it has started anew: what was wanted a moment ago is wanted now
                self._guarded(self._sync)
                self._begin_next(pool)
                self._rest()

    def _begin_next(self, pool: ThreadPoolExecutor) -> None:
        """Have the worker thread do the next thing, unless it is still at one."""
        if self._busy is not None and not self._busy.done():
            return
        action = self._next()
        if action is None:
            return
        self._busy = pool.submit(self._guarded, partial(self._work.perform, action, self._view))
        self._busy.add_done_callback(lambda _: self._wake.set())  # worth reporting at once

    def _rest(self) -> None:
        """Until the next look is due: when something wakes, in time, or when the engine is back."""
        until = time.monotonic() + self._poll_seconds
        while not self._wake.wait(
            min(AWAY_POLL, self._poll_seconds) if self._is_away else self._poll_seconds
        ):
            if time.monotonic() >= until or not self._is_away or self._engine.answers():
                break
        self._wake.clear()

    @property
    def _is_away(self) -> bool:
        return not self._view.healthy

    def _hear_bell(self) -> None:
        """Wake the loop whenever the platform rings. What is not heard is found by the next poll."""
        path, wish = f"/worker/v1/pools/{self._settings.pool}/wait", PoolWait(seconds=WAIT_SECONDS)
        pauses = growing_pauses()
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._platform.post_for_nothing(path, wish, timeout=WAIT_SECONDS + 5)
            except (Refused, Unreachable):  # an older platform, or one that is away
                self._stopping.wait(next(pauses))
                continue
            pauses = growing_pauses()
            self._wake.set()
            spent = time.monotonic() - began
            self._stopping.wait(max(0.0, SHORTEST_POLL - spent))  # however fast it rings

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Stopped:
            return
        except Exception:
            log.exception("a step of the agent failed; it goes on")
            self._stopping.wait(1.0)

    # What the main thread does: look, report, decide.

    def _adopt(self) -> None:
        """Prove again what the engine already holds, before the first report: a restart shows no gap."""
        self._view = self._engine.look()
        if not self._view.healthy:
            return
        self._work.perform(LearnBase(self._view.base), self._view)
        if registered := self._registered():
            self._work.perform(Load(list(registered.items())), self._view)

    def _look(self) -> None:
        self._view = self._engine.look()
        self._idle_since = (self._idle_since or time.monotonic()) if self._view.requests == 0 else None
        self._note_unused()

    def _sync(self) -> None:
        leaving = self._leaving
        held = [*held_now(self._situation(), self._registered()), *self._refused]
        report = PoolReport(
            replica=self._settings.replica,
            url=self._settings.advertised_url,
            incarnation=self._view.incarnation,
            healthy=self._view.healthy,
            engine=self._view.version,
            base=self._view.base,
            base_digest=self._work.digest_of(self._view.base),
            capacity=self._settings.capacity,
            leaving=leaving,
            trouble=(self._work.base_trouble or self._last_trouble)[:300],
            held=held,
        )
        path = f"/worker/v1/pools/{self._settings.pool}/sync"
        try:
            answer = self._platform.post(path, report, PoolWanted)
        except (Refused, Unreachable) as error:
            self._say_once(f"the platform could not be synced with: {error}")
            return
        self._say_once("")
        self._reported = self._view.incarnation
        if leaving:
            self._told_leaving.set()
        self._take(answer)

    def _take(self, answer: PoolWanted) -> None:
        """What the platform wants, less what must not be touched: that is reported as failed instead."""
        wanted, self._refused = [], []
        for version in answer.wanted:
            try:
                check_name(version)
            except VersionRefused as refused:
                error = str(refused)
                self._refused.append(
                    HeldVersion(name=version.name, digest=version.digest, state="failed", error=error)
                )
            else:
                wanted.append(version)
        self._wanted = wanted
        self._poll_seconds = min(max(answer.poll_seconds, SHORTEST_POLL), LONGEST_POLL)

    def _next(self) -> Action | None:
        """Nothing before the platform was heard: an agent that knows nothing must not unload anything."""
        return None if self._wanted is None else next_action(self._situation())

    def _situation(self) -> Situation:
        return Situation(
            engine=self._view,
            wanted=self._wanted or [],
            cached=self._cache.held(),
            records=dict(self._work.records),
            unwanted_since=dict(self._unwanted_since),
            unused_since=dict(self._unused_since),
            disk_crowded=self._cache.is_crowded(),
            base_known=self._work.digest_of(self._view.base) is not None,
            now=time.monotonic(),
            idle_since=self._idle_since,
        )

    def _registered(self) -> dict[str, Sha256]:
        """Names on the engine that were loaded from this agent's folders, with their digests."""
        found = {}
        for name, root in self._view.adapters.items():
            digest = Path(root).name
            if DIGEST.fullmatch(digest) and Path(root) == self._cache.path(digest):
                found[name] = digest
        return found

    def _note_unused(self) -> None:
        in_use = {version.digest for version in self._wanted or []} | set(self._registered().values())
        now, names = time.monotonic(), {version.name for version in self._wanted or []}
        self._unwanted_since = {
            name: self._unwanted_since.get(name, now) for name in self._view.adapters if name not in names
        }
        self._unused_since = {
            digest: self._unused_since.get(digest, now)
            for digest in self._cache.held()
            if digest not in in_use
        }

    def _say_once(self, trouble: str) -> None:
        if trouble and trouble != self._last_trouble:
            log.error("%s", trouble)
        elif self._last_trouble and not trouble:
            log.info("the platform answers again")
        self._last_trouble = trouble
