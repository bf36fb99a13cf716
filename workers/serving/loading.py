"""One version at the engine: files checked, registered, proven; unregistered where it cannot be."""

import logging
import time
from dataclasses import replace
from pathlib import Path

from workers.contract import Sha256
from workers.serving.engine import Engine, EngineError, EngineView
from workers.serving.files import AdapterCache, VersionRefused, check_base, check_folder, read_manifest
from workers.serving.plan import Record, pause_after
from workers.serving.proof import NotProven, Proofs

log = logging.getLogger(__name__)

Base = tuple[str, Sha256]
"""Name and digest of the base that the engine serves."""


class Loader:
    """Several versions may be loaded at a time, from threads of their own."""

    def __init__(self, engine: Engine, cache: AdapterCache, *, max_rank: int) -> None:
        self._engine = engine
        self._cache = cache
        self._max_rank = max_rank
        self._proofs = Proofs(engine)

    def register(self, view: EngineView, base: Base | None, record: Record, digest: Sha256) -> Record:
        """Check the files again, and load them when they are not registered.

        Raises EngineError and VersionRefused.
        """
        registered, folder = view.adapters.get(record.name), self._cache.path(digest)
        self._check(view, base, digest, is_registered=registered is not None)
        if registered is not None and Path(registered) != folder:
            raise VersionRefused(
                "The engine holds other files under this name, which are not ours. Restart the engine."
            )
        load_ms: float | None = None
        if registered is None:
            began = time.monotonic()
            self._engine.load(record.name, str(folder))
            load_ms = (time.monotonic() - began) * 1000
        return replace(record, state="loading", load_ms=load_ms)

    def prove(self, view: EngineView, base: Base | None, record: Record, digest: Sha256) -> Record:
        """Have it shown that what is registered applies the version. Raises EngineError and NotProven."""
        _check_view(view, base)
        manifest = read_manifest(self._cache.path(digest), digest)
        try:
            proof, is_whole = self._proofs.prove(view, record.name, digest, manifest)
        except (EngineError, NotProven):
            self._engine.unload(record.name)
            raise
        log.info("%s is ready: %s", record.name, proof)
        return Record(
            record.name,
            state="ready",
            proof=proof,
            load_ms=record.load_ms,
            incarnation=view.incarnation,
            is_whole=is_whole,
            since=time.monotonic(),
        )

    def prove_next(self, view: EngineView, base: Base | None, record: Record, digest: Sha256) -> Record:
        """Take the next step of proving in whole what was proven shortly; later where the engine is away now,
        which proves nothing against the version. Raises VersionRefused and NotProven."""
        try:
            _check_view(view, base)
            manifest = read_manifest(self._cache.path(digest), digest)
            proof = self._proofs.prove_next(view, record.name, digest, manifest)
        except EngineError as error:
            log.warning("%s is not proven in whole yet: %s", record.name, error)
            failures = record.failures + 1
            return replace(record, failures=failures, not_before=time.monotonic() + pause_after(failures))
        except NotProven:
            self._engine.unload(record.name)
            raise
        if proof is None:
            return replace(record, failures=0)
        log.info("%s is proven in whole: %s", record.name, proof)
        return replace(record, proof=proof, is_whole=True, failures=0)

    def _check(self, view: EngineView, base: Base | None, digest: Sha256, *, is_registered: bool) -> None:
        """Of files that are still right. Damaged ones are dropped, and fetched again, when it is safe."""
        known_base = _check_view(view, base)
        try:
            manifest = check_folder(self._cache.path(digest), digest, max_rank=self._max_rank)
        except (VersionRefused, OSError):
            if not is_registered:
                self._cache.delete(digest)
            raise
        check_base(manifest, *known_base)


def _check_view(view: EngineView, base: Base | None) -> Base:
    if not view.healthy or base is None or base[0] != view.base:
        raise EngineError("The engine went away before the adapter could be proven.")
    return base
