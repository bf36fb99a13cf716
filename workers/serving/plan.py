"""What to do next, from what is wanted, what the engine holds and what is on disk. Pure functions."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from workers.contract import HeldVersion, ServingProof, Sha256, WantedVersion
from workers.serving.engine import EngineView

FIRST_PAUSE = 5.0
LONGEST_PAUSE = 300.0
UNLOAD_AFTER_SECONDS = 3.0
"""A version stays registered this long after it was last wanted: until every gateway has heard of it."""
FILES_KEPT_SECONDS = 600.0
"""Files stay this long after a version was last wanted or registered, in case it is wanted again. Longer
while a request that uses it runs: the engine may read them again in the middle of it, and dies when they are
gone.
"""
MOST_LOADS = 4
"""Versions loaded and proven at a time: as many as an engine has in one batch."""
REST_IDLE_SECONDS, REST_AFTER_SECONDS = 2.0, 60.0
"""A version that was proven shortly is proven in whole, step by step, once it has been ready and the engine
idle for the first, so as not to meet the request that it was loaded for; and after the second in any case.
"""
CROWDED_SECONDS = 15.0
"""The same while the disk is nearly full: long enough for a request that had just begun to show."""


@dataclass(frozen=True)
class Record:
    """What this agent knows about one version it was asked for."""

    name: str
    state: Literal["loading", "ready", "failed"] = "loading"
    error: str = ""
    proof: ServingProof | None = None
    load_ms: float | None = None
    incarnation: str = ""
    """The engine's incarnation in which `state` came to be."""
    is_whole: bool = True
    """Nothing is left to prove."""
    since: float = 0.0
    """Monotonic time at which it became ready."""
    failures: int = 0
    """In a row."""
    not_before: float = 0.0
    """Monotonic time of the next try after a failure, or of the next at the rest of the proof."""


@dataclass(frozen=True)
class Unload:
    name: str


@dataclass(frozen=True)
class LearnBase:
    base: str


@dataclass(frozen=True)
class Fetch:
    version: WantedVersion


@dataclass(frozen=True)
class Load:
    """Load those that are not registered, and prove them, all at a time: (name, digest)."""

    versions: Sequence[tuple[str, Sha256]]


@dataclass(frozen=True)
class ProveNext:
    """Take one step of proving in whole what was proven shortly."""

    name: str
    digest: Sha256


@dataclass(frozen=True)
class Forget:
    digest: Sha256


Action = Unload | LearnBase | Fetch | Load | ProveNext | Forget


@dataclass(frozen=True)
class Situation:
    """Everything the next step depends on."""

    engine: EngineView
    wanted: Sequence[WantedVersion]
    cached: Collection[Sha256]
    records: Mapping[Sha256, Record]
    unwanted_since: Mapping[str, float]
    """Monotonic time since when a registered name has not been wanted."""
    unused_since: Mapping[Sha256, float]
    """Monotonic time since when a cached version has been neither wanted nor registered."""
    disk_crowded: bool
    base_known: bool
    now: float
    idle_since: float | None = None
    """Monotonic time since when every look has found the engine without a request."""


def next_action(situation: Situation) -> Action | None:
    """The one most useful thing to do, or None. Unloading first, so that slots are free; deleting last."""
    return (
        _stray(situation)
        or _base(situation)
        or _load(situation)
        or _fetch(situation)
        or _prove_next(situation)
        or _forget(situation)
    )


def held_now(situation: Situation, digests: Mapping[str, Sha256]) -> list[HeldVersion]:
    """What to report: every wanted version, and those still registered though no longer wanted.

    `digests` maps registered names to the digests of the folders they were loaded from.
    """
    names = {version.digest: version.name for version in situation.wanted}
    names |= {digest: name for name, digest in digests.items() if digest in situation.records}
    return [_held(name, digest, situation) for digest, name in names.items()]


def is_ready(name: str, record: Record | None, engine: EngineView) -> bool:
    """Proven in this very incarnation of the engine, and still registered."""
    return (
        record is not None
        and record.state == "ready"
        and engine.healthy
        and record.incarnation == engine.incarnation
        and name in engine.adapters
    )


def pause_after(failures: int) -> float:
    """Seconds until the next try after this many failures in a row."""
    return min(FIRST_PAUSE * 2.0 ** (failures - 1), LONGEST_PAUSE)


def _held(name: str, digest: Sha256, situation: Situation) -> HeldVersion:
    record = situation.records.get(digest)
    if record is None:
        return HeldVersion(name=name, digest=digest, state="loading")
    if record.state == "failed":
        return HeldVersion(name=name, digest=digest, state="failed", error=record.error[:1000])
    ready = is_ready(name, record, situation.engine)
    return HeldVersion(
        name=name,
        digest=digest,
        state="ready" if ready else "loading",
        proof=record.proof if ready else None,
        load_ms=record.load_ms if ready else None,
    )


def _stray(situation: Situation) -> Action | None:
    for name, since in situation.unwanted_since.items():
        if name in situation.engine.adapters and situation.now - since >= UNLOAD_AFTER_SECONDS:
            return Unload(name)
    return None


def _base(situation: Situation) -> Action | None:
    if situation.engine.healthy and not situation.base_known:
        return LearnBase(situation.engine.base)
    return None


def _load(situation: Situation) -> Action | None:
    if not situation.engine.healthy or not situation.base_known:
        return None
    due = [version for version in situation.wanted if _is_to_load(version, situation)]
    first = [version for version in due if version.required]  # nobody published waits for a cold one
    first += [version for version in due if version not in first and _is_recognised_soon(version, situation)]
    batch = (first or due)[:MOST_LOADS]
    return Load([(version.name, version.digest) for version in batch]) if batch else None


def _is_recognised_soon(version: WantedVersion, situation: Situation) -> bool:
    """Proven in whole before the engine started anew: it holds nobody up."""
    record = situation.records.get(version.digest)
    return record is not None and record.state == "ready" and record.is_whole


def _is_to_load(version: WantedVersion, situation: Situation) -> bool:
    record = situation.records.get(version.digest)
    ready = is_ready(version.name, record, situation.engine)
    return version.digest in situation.cached and not ready and _is_due(record, situation)


def _prove_next(situation: Situation) -> Action | None:
    now, idle_since = situation.now, situation.idle_since
    for version in situation.wanted:
        record = situation.records.get(version.digest)
        if record is None or record.is_whole or now < record.not_before:
            continue
        if not is_ready(version.name, record, situation.engine):
            continue
        is_idle = idle_since is not None and now - max(idle_since, record.since) >= REST_IDLE_SECONDS
        if is_idle or now - record.since >= REST_AFTER_SECONDS:
            return ProveNext(version.name, version.digest)
    return None


def _fetch(situation: Situation) -> Action | None:
    for version in situation.wanted:
        record = situation.records.get(version.digest)
        if version.digest not in situation.cached and _is_due(record, situation):
            return Fetch(version)
    return None


def _is_due(record: Record | None, situation: Situation) -> bool:
    """A failed version waits for its pause to end, or for an engine that was restarted since."""
    if record is None or record.state != "failed":
        return True
    restarted = situation.engine.healthy and record.incarnation not in ("", situation.engine.incarnation)
    return situation.now >= record.not_before or restarted


def _forget(situation: Situation) -> Action | None:
    """Files that nobody wants, that are not registered, and that no running request may need."""
    if not situation.engine.healthy:
        return None
    kept = CROWDED_SECONDS if situation.disk_crowded else FILES_KEPT_SECONDS
    for digest, since in sorted(situation.unused_since.items(), key=lambda item: item[1]):
        idle = situation.now - since >= kept and not situation.engine.may_read(f"@{digest[:12]}")
        if digest in situation.cached and idle:
            return Forget(digest)
    return None
