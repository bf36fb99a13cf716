"""From the name an app sent to what shall answer, and the replicas that can."""

import re
from dataclasses import dataclass
from hashlib import blake2b
from random import random

from stillhouse.gateway.auth import Caller
from stillhouse.gateway.errors import ApiError, invalid
from stillhouse.gateway.snapshot import Base, Escalation, Part, Published, Replica, Snapshot, Version
from workers.contract import Calibration, ThinkContract

_NAME = re.compile(r"[A-Za-z0-9_-]+([.:@/][A-Za-z0-9_-]+)*", re.ASCII)
_MAX_NAME_CHARS = 160

LOADING_SECONDS, ASKED_FOR_SECONDS, AWAY_SECONDS = 2, 5, 30
"""When to ask again for what has no replica: one is loading it; none is yet; there is no healthy one at all
(an engine takes half a minute to start)."""


@dataclass(frozen=True, slots=True)
class Target:
    """What answers a request."""

    name: str
    """Immutable name of the version, or id of the base: what the engine is asked for and the answer names."""
    think: ThinkContract
    replicas: tuple[Replica, ...]
    version: str = ""
    """Id of the version; empty for a base."""
    calibration: Calibration | None = None
    alias: str = ""
    """The alias that chose it; empty where the app named the version or base itself."""
    shadow: "Target | None" = None
    """Gets a copy of this very request."""
    escalation: Escalation | None = None
    """May be asked where this target cannot answer, or should not."""
    keep_days: int = 0
    """How long prompt and answer are kept; 0: not at all."""
    reasons: bool | None = None
    """Whether it reasons unless told otherwise, where its base can do both; None: as it does by itself."""


@dataclass
class Cold(ApiError):
    """No replica has the version now. One may have it soon: it is worth asking for, and a moment's wait."""

    version: str = ""
    """Its id."""


def check_name(name: object) -> str:
    """The model's name, safe to look up, log and record; ApiError 400 for anything else."""
    if not isinstance(name, str) or not name:
        raise invalid("model", "Send `model`: the alias your app uses.", code="missing_required_parameter")
    if len(name) > _MAX_NAME_CHARS or not _NAME.fullmatch(name):
        message = "`model` is not a name. GET /v1/models lists the names."
        raise invalid("model", message, code="invalid_model_name")
    return name


def resolve(snapshot: Snapshot, caller: Caller, name: str, user: str = "") -> Target:
    """The target, with at least one replica. `user` is the app's own, and decides over a canary.

    Raises:
        ApiError: 404 model_not_found for what does not exist, is not published or belongs to somebody else
        (all alike);
            403 model_not_approved or model_quarantined; 503 model_unavailable, or model_loading (Cold where
            waiting makes sense).
    """
    if caller.models is not None and name not in caller.models:
        raise not_found(name)
    found = _look_up(snapshot, caller, name)
    if found is None:
        raise not_found(name)
    if isinstance(found, Base):
        if not found.replicas:
            raise _away(name)
        return Target(found.id, found.think, found.replicas)
    if isinstance(found, Version):
        _check_loaded(found, caller, name)
        return _target(found)
    version = _answering(found, name, f"{caller.id}:{user}" if user else caller.id)
    _check_loaded(version, caller, name)
    return _target(
        version,
        name,
        shadow=_shadow(found.shadow, name),
        escalation=_escalation(found, caller),
        keep_days=found.keep_days if caller.models is None else 0,
    )


def _target(
    version: Version,
    alias: str = "",
    *,
    shadow: Target | None = None,
    escalation: Escalation | None = None,
    keep_days: int = 0,
) -> Target:
    return Target(
        name=version.name,
        think=version.base.think,
        replicas=version.replicas,
        version=version.id,
        calibration=version.calibration,
        alias=alias,
        shadow=shadow,
        escalation=escalation,
        keep_days=keep_days,
        reasons=version.reasons,
    )


def _escalation(published: Published, caller: Caller) -> Escalation | None:
    """A key that is marked local-only, and a grant that lists names, ask nothing else."""
    if caller.models is not None or (caller.key is not None and caller.key.local_only):
        return None
    return published.escalation


def _answering(published: Published, alias: str, sticky: str) -> Version:
    """The alias's own version or its canary. A canary that cannot answer leaves its part to the other."""
    canary = published.canary
    if canary is None or not _can_answer(canary.version):
        return published.version
    draw = 100 * random() if published.by_request else _place(f"{alias}:{canary.version.id}:{sticky}")
    return canary.version if draw < canary.percent else published.version


def _place(text: str) -> float:
    """From 0 to below 100, evenly, and always the same for the same text: who has a canary of 10 per cent has
    it at 50, too."""
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=6).digest()) * 100 / 2**48


def _shadow(part: Part | None, alias: str) -> Target | None:
    if part is None or not _can_answer(part.version) or 100 * random() >= part.percent:
        return None
    return _target(part.version, alias)


def _can_answer(version: Version) -> bool:
    return version.state == "approved" and bool(version.replicas)


def _look_up(snapshot: Snapshot, caller: Caller, name: str) -> Version | Base | Published | None:
    alias = snapshot.aliases.get((caller.workspace_id, name))
    version = snapshot.versions.get(name)
    if version is not None and version.workspace_id != caller.workspace_id:
        version = None
    immutable = version or snapshot.bases.get(name)
    if caller.models is not None:
        # A grant that lists names was made for those very things (an evaluation): no alias may slip in
        # between.
        return immutable or alias
    return alias or immutable


def _check_approved(version: Version, caller: Caller, name: str) -> None:
    granted = caller.models is not None and version.name in caller.models
    if version.state == "approved" or (granted and version.state == "candidate"):
        return
    if version.state == "quarantined":
        raise ApiError(
            403,
            "model_quarantined",
            f"What answers as `{name}` was trained on rows that were erased since, and a lead of the "
            "workspace has yet to decide about it. Publish another version, or have it decided.",
            param="model",
        )
    raise ApiError(
        403,
        "model_not_approved",
        f"The version `{name}` is {version.state}, and only approved versions answer apps. "
        "Ask a lead of the workspace to approve it, or call an alias that is published.",
        param="model",
    )


def not_found(name: str) -> ApiError:
    return ApiError(
        404,
        "model_not_found",
        f"There is no model `{name}` that this key may call. GET /v1/models lists the names it may use; "
        "a new alias answers once it is published.",
        param="model",
    )


def _check_loaded(version: Version, caller: Caller, name: str) -> None:
    """Raises ApiError for a version that may not answer, or that no replica has now."""
    _check_approved(version, caller, name)
    if version.replicas:
        return
    if version.failed:
        raise ApiError(
            503,
            "model_unavailable",
            f"The engine could not load `{name}`. The page of the version says why; "
            "publish another version meanwhile.",
            param="model",
        )
    if not version.base.replicas:
        raise _away(name)
    raise Cold(
        503,
        "model_loading",
        f"`{name}` is being loaded. Try again in a few seconds.",
        param="model",
        retry_after=LOADING_SECONDS if version.loading else ASKED_FOR_SECONDS,
        version=version.id,
    )


def _away(name: str) -> ApiError:
    return ApiError(
        503,
        "model_loading",
        f"No engine that could answer for `{name}` is running just now: it may be restarting. "
        "Try again in half a minute; if it stays away, tell your operator.",
        param="model",
        retry_after=AWAY_SECONDS,
    )


def list_models(snapshot: Snapshot, caller: Caller) -> list[dict[str, object]]:
    """What this caller may call, in OpenAI's list shape; `root` names what answers and `parent` its base."""
    mine = caller.workspace_id
    owner = snapshot.workspaces.get(mine, "")
    rows: dict[str, dict[str, object]] = {}
    for (workspace_id, name), published in snapshot.aliases.items():
        if workspace_id == mine and published.version.state == "approved":
            version = published.version
            rows[name] = _model(name, published.created, owner, version.name, version.base.id)
    for version in snapshot.versions.values():
        granted = caller.models is not None and version.name in caller.models
        if version.workspace_id == mine and (
            version.state == "approved" or (granted and version.state == "candidate")
        ):
            rows[version.name] = _model(version.name, version.created, owner, version.name, version.base.id)
    for base in snapshot.bases.values():
        rows.setdefault(base.id, _model(base.id, base.created, "stillhouse", base.id, None))
    return [row for name, row in rows.items() if caller.models is None or name in caller.models]


def _model(name: str, created: int, owner: str, root: str, parent: str | None) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": owner,
        "root": root,
        "parent": parent,
    }
