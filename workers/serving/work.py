"""What the agent's worker thread does, one action at a time, and what it knows of every version."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from workers.contract import Sha256, WantedVersion
from workers.contract.weights import BaseFolderError, check_scaling
from workers.serving.engine import Engine, EngineError, EngineView
from workers.serving.files import AdapterCache, DiskFull, VersionRefused, base_digest
from workers.serving.loading import Base, Loader
from workers.serving.plan import (
    FIRST_PAUSE,
    MOST_LOADS,
    Action,
    Fetch,
    Forget,
    LearnBase,
    Load,
    ProveNext,
    Record,
    Unload,
    pause_after,
)
from workers.serving.proof import NotProven
from workers.serving.reading import check_reading
from workers.serving.settings import AgentSettings
from workers.wire.transfer import TransferError

log = logging.getLogger(__name__)

EXPECTED = (EngineError, NotProven, VersionRefused, DiskFull, TransferError)
"""Failures whose text is a sentence for people."""

Step = Callable[[EngineView, Base | None, Record, Sha256], Record]
"""Of a version: its record before, and after."""


class Stopped(Exception):
    """The agent is being stopped; a download need not be finished."""


class Work:
    """Of one agent. `records` is written here only."""

    def __init__(
        self,
        settings: AgentSettings,
        engine: Engine,
        cache: AdapterCache,
        *,
        wake: threading.Event,
        stopping: threading.Event,
    ) -> None:
        """`wake` is set when there is something to report; work that takes long ends at `stopping`."""
        self._settings = settings
        self._engine = engine
        self._cache = cache
        self._wake = wake
        self._stopping = stopping
        self._loader = Loader(engine, cache, max_rank=settings.max_rank)
        self._base: Base | None = None
        self.records: dict[Sha256, Record] = {}
        self.base_trouble = ""
        """Why nothing is loaded on this engine, in words."""

    def digest_of(self, base: str) -> Sha256 | None:
        """Of the base of this name, where it was read."""
        return self._base[1] if self._base and self._base[0] == base else None

    def perform(self, action: Action, view: EngineView) -> None:
        """`view`: of the engine, a moment ago."""
        log.log(logging.DEBUG if isinstance(action, ProveNext) else logging.INFO, "%s", _in_words(action))
        match action:
            case Unload(name):
                self._engine.unload(name)
            case LearnBase(base):
                self._learn_base(base)
            case Fetch(version):
                self._recorded(view, version.name, version.digest, lambda: self._fetch(version))
                can_load = view.healthy and self.digest_of(view.base) is not None
                if can_load and self.records[version.digest].state != "failed":
                    self._load_all([(version.name, version.digest)])  # at once: an app may be waiting
            case Load(versions):
                self._load_all(versions)
            case ProveNext(name, digest):
                self._recorded(view, name, digest, lambda: self._prove_next(digest))
            case Forget(digest):
                self._cache.delete(digest)
                self.records.pop(digest, None)

    def _learn_base(self, base: str) -> None:
        """Without the base's digest nothing is loaded, and the platform hears why."""
        memory = self._settings.adapters_dir / "base-digest.json"
        try:
            digest = base_digest(self._settings.bases_dir, base, memory)
            check_scaling(self._settings.bases_dir / base)
            check_reading(self._engine, base, self._settings.bases_dir / base)
        except OSError as error:
            self._cannot_serve(f"The files of the engine's base cannot be read: {error}")
        except (VersionRefused, BaseFolderError, EngineError) as error:
            self._cannot_serve(str(error))
        else:
            self._base, self.base_trouble = (base, digest), ""

    def _cannot_serve(self, trouble: str) -> None:
        self.base_trouble = trouble
        log.error("%s", trouble)
        self._stopping.wait(FIRST_PAUSE)

    def _recorded(self, view: EngineView, name: str, digest: Sha256, work: Callable[[], Record]) -> None:
        """Do the work and keep what came of it; a failure waits longer each time before the next try."""
        before = self.records.get(digest, Record(name))
        try:
            self.records[digest] = work()
        except Stopped:
            raise
        except Exception as error:
            if isinstance(error, EXPECTED):
                log.error("%s: %s", name, error)
                sentence = str(error)
            else:
                log.exception("%s: failed", name)
                sentence = f"The agent failed ({type(error).__name__}); its log has the details."
            failures = before.failures + 1
            self.records[digest] = Record(
                name,
                state="failed",
                error=sentence,
                incarnation=view.incarnation,
                failures=failures,
                not_before=time.monotonic() + pause_after(failures),
            )

    def _fetch(self, version: WantedVersion) -> Record:
        self._cache.fetch(version, max_rank=self._settings.max_rank, check=self._check_stopped)
        return Record(version.name)

    def _load_all(self, versions: Sequence[tuple[str, Sha256]]) -> None:
        """At a time, and proven once all are registered: the engine then does it in one batch, which a load
        would have to wait for. Each is reported as soon as it is ready."""
        view = self._engine.look()

        def step(take: Step, name: str, digest: Sha256) -> None:
            before = self.records.get(digest, Record(name))
            self._recorded(view, name, digest, lambda: take(view, self._base, before, digest))

        def prove(name: str, digest: Sha256) -> None:
            if self.records[digest].state != "failed":
                step(self._loader.prove, name, digest)
                self._wake.set()

        with ThreadPoolExecutor(MOST_LOADS, thread_name_prefix="agent-load") as pool:
            list(pool.map(lambda version: step(self._loader.register, *version), versions))
            list(pool.map(lambda version: prove(*version), versions))

    def _prove_next(self, digest: Sha256) -> Record:
        return self._loader.prove_next(self._engine.look(), self._base, self.records[digest], digest)

    def _check_stopped(self) -> None:
        if self._stopping.is_set():
            raise Stopped


def _in_words(action: Action) -> str:
    match action:
        case Unload(name):
            return f"unloading {name}"
        case LearnBase(base):
            return f"reading the digest of base {base}"
        case Fetch(version):
            return f"fetching {version.name}"
        case Load(versions):
            return f"loading and proving {', '.join(name for name, _ in versions)}"
        case ProveNext(name, _):
            return f"proving more of {name}"
        case Forget(digest):
            return f"deleting the files of {digest[:12]}"
