"""Writes of publishing: which version an alias answers with, and which part. Every change is a new row."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from django.db import transaction
from django.db.models import Max

from stillhouse.accounts.access import require
from stillhouse.accounts.models import Membership
from stillhouse.adapters.models import APPROVED, AdapterVersion
from stillhouse.audit.actions import record
from stillhouse.core.errors import NotFound, UserError
from stillhouse.core.notify import GATEWAY, notify
from stillhouse.publishing.models import Alias, Publication, Share
from stillhouse.publishing.queries import canary_of, current_publication, rollback_target, shadow_of
from stillhouse.serving.queries import is_ready, may_load
from stillhouse.serving.use import want_version
from stillhouse.training.names import check_model_name

LOADING_SECONDS = 10.0
"""How long a person's request waits for a version that is being loaded. That takes a second or two; a large
one may take longer, and then a sentence says so."""
_LOOK_SECONDS = 0.03


@dataclass(frozen=True)
class Part:
    """A share to be: see `Share`."""

    version: AdapterVersion
    percent: int
    shadow: bool = False


class NotReady(UserError):
    """No replica would answer for the version now."""

    def __init__(self, version: AdapterVersion) -> None:
        super().__init__(
            "not_ready",
            f"No replica is ready to serve {version} at the moment.",
            "version",
            "It is being loaded now; try again in a few seconds."
            if may_load(version)
            else "Look at the pool: is an engine running, and did the version load there?",
            status=409,
        )
        self.version = version


@contextmanager
def _change() -> Iterator[None]:
    """One transaction. What it would answer with and is not loaded is asked for, once it is rolled back."""
    try:
        with transaction.atomic():
            yield
    except NotReady as error:
        want_version(version=error.version)
        raise


@_change()
def publish(*, by: Membership, alias_name: str, version: AdapterVersion) -> Publication:
    """Let the alias answer with the version from the next request on, every time; the alias is made when it
    is new. A canary or shadow it had ends.

    Publishing what is published already changes nothing. Raises NotFound, UserError `not_allowed`,
    `bad_name`, `name_taken_by_base`, `model_not_approved` or `not_ready`.
    """
    if version.adapter.workspace_id != by.workspace_id:
        raise NotFound("adapter version")
    require(by, "alias.publish")
    check_model_name(alias_name, place="alias")
    _check_approved(version)
    Alias.objects.get_or_create(workspace=by.workspace, name=alias_name, defaults={"created_by": by.user})
    alias = Alias.objects.select_for_update().get(workspace=by.workspace, name=alias_name)
    current = current_publication(alias)
    if current and current.version_id == version.id and not current.shares.exists():
        return current
    _check_ready(version)
    return _append(by, alias, version, Publication.PUBLISH)


def publish_once_loaded(
    *, by: Membership, alias_name: str, version: AdapterVersion, seconds: float = LOADING_SECONDS
) -> Publication:
    """`publish`, for a version that is not loaded as soon as it is; every try is a transaction of its own.

    Raises as `publish`: `not_ready` where no replica will load it, or none has within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return publish(by=by, alias_name=alias_name, version=version)
        except NotReady:
            while not is_ready(version):
                if time.monotonic() >= deadline or not may_load(version):
                    raise
                time.sleep(_LOOK_SECONDS)


@_change()
def start_canary(
    *,
    by: Membership,
    alias: Alias,
    version: AdapterVersion,
    percent: int,
    spread: str = Publication.BY_USER,
) -> Publication:
    """Let the version answer `percent` of the alias's requests; at 100 it is published.

    With a higher percentage whoever had the canary keeps it. Raises NotFound, UserError `not_allowed`,
    `bad_share`, `not_published`, `model_not_approved` or `not_ready`.
    """
    if percent == 100:
        _of_workspace(by, alias, version)
        return publish(by=by, alias_name=alias.name, version=version)
    if spread not in (Publication.BY_USER, Publication.BY_REQUEST):
        raise UserError(
            "bad_share", f"{spread[:20]!r} is no way to spread.", "spread", "Use user or request."
        )
    locked, current = _current(by, alias, version)
    if version.pk == current.version_id:
        raise UserError(
            "bad_share",
            f"{version} answers already as the alias's own version.",
            "version",
            "Choose another version, or end the canary.",
        )
    _check_percent(percent, most=99)
    _check_approved(version)
    _check_ready(version)
    return _change_shares(by, locked, current, Part(version, percent), shadow=False, spread=spread)


@transaction.atomic
def end_canary(*, by: Membership, alias: Alias) -> Publication:
    """Let the alias's own version answer everything again. Nothing happens where there is no canary."""
    locked, current = _current(by, alias)
    if canary_of(current) is None:
        return current
    return _change_shares(by, locked, current, None, shadow=False, spread=Publication.BY_USER)


@_change()
def start_shadow(*, by: Membership, alias: Alias, version: AdapterVersion, percent: int) -> Publication:
    """Send the version a copy of `percent` of the alias's requests; nobody sees its answers.

    Copies are made only while the gateway has room for them. Raises as `start_canary`.
    """
    locked, current = _current(by, alias, version)
    _check_percent(percent, most=100)
    _check_approved(version)
    _check_ready(version)
    return _change_shares(by, locked, current, Part(version, percent, shadow=True), shadow=True)


@transaction.atomic
def end_shadow(*, by: Membership, alias: Alias) -> Publication:
    """Copy no more requests. Nothing happens where there is no shadow."""
    locked, current = _current(by, alias)
    if shadow_of(current) is None:
        return current
    return _change_shares(by, locked, current, None, shadow=True)


def _of_workspace(by: Membership, alias: Alias, version: AdapterVersion | None) -> None:
    if alias.workspace_id != by.workspace_id:
        raise NotFound("alias")
    if version is not None and version.adapter.workspace_id != by.workspace_id:
        raise NotFound("adapter version")


def _current(
    by: Membership, alias: Alias, version: AdapterVersion | None = None
) -> tuple[Alias, Publication]:
    """The alias, locked, and what it answers with, once it is clear that the member may change that."""
    _of_workspace(by, alias, version)
    require(by, "alias.publish")
    locked = Alias.objects.select_for_update().get(pk=alias.pk)
    current = current_publication(locked)
    if current is None:
        raise UserError(
            "not_published", f"{alias.name} answers with nothing yet.", "alias", "Publish a version first."
        )
    return locked, current


def _check_percent(percent: int, *, most: int) -> None:
    if not 1 <= percent <= most:
        raise UserError(
            "bad_share", f"{percent} % is no share.", "percent", f"Choose a whole number from 1 to {most}."
        )


def _change_shares(
    by: Membership,
    alias: Alias,
    current: Publication,
    part: Part | None,
    *,
    shadow: bool,
    spread: str | None = None,
) -> Publication:
    """A row with the same version and, of its kind, this share only; a share of the other kind stays."""
    kept = [
        Part(share.version, share.percent, share.shadow)
        for share in current.shares.all()
        if share.shadow != shadow
    ]
    parts = [*kept, part] if part else kept
    return _append(by, alias, current.version, Publication.SHARES, parts, spread or current.spread)


@_change()
def rollback(*, by: Membership, alias: Alias) -> Publication:
    """Let the alias answer with what it answered with before.

    Rolling back twice goes back twice: what was rolled back from is never returned to. Raises NotFound,
    UserError `not_allowed`, `nothing_to_roll_back_to`, `model_not_approved` or `not_ready`.
    """
    if alias.workspace_id != by.workspace_id:
        raise NotFound("alias")
    require(by, "alias.rollback")
    locked = Alias.objects.select_for_update().get(pk=alias.pk)
    target = rollback_target(locked)
    if target is None:
        raise UserError(
            "nothing_to_roll_back_to",
            f"{alias.name} has no earlier version to go back to.",
            "alias",
            "Publish another approved version instead.",
            status=409,
        )
    _check_approved(target)
    _check_ready(target)
    return _append(by, locked, target, Publication.ROLLBACK)


def _check_approved(version: AdapterVersion) -> None:
    """As it stands, and until this transaction ends: nobody retires it meanwhile."""
    state = AdapterVersion.objects.select_for_update().values_list("state", flat=True).get(pk=version.pk)
    if state != APPROVED:
        raise UserError(
            "model_not_approved",
            f"{version} is {state}: only an approved version may be published.",
            "version",
            "Ask for its approval, or choose an approved version.",
            status=403,
        )


def _check_ready(version: AdapterVersion) -> None:
    if not is_ready(version):
        raise NotReady(version)


def _append(
    by: Membership,
    alias: Alias,
    version: AdapterVersion,
    kind: str,
    parts: Sequence[Part] = (),
    spread: str = Publication.BY_USER,
) -> Publication:
    """The next row of an alias that is locked."""
    last = alias.publications.aggregate(last=Max("sequence"))["last"] or 0
    publication = Publication.objects.create(
        alias=alias, sequence=last + 1, version=version, kind=kind, spread=spread, created_by=by.user
    )
    for part in parts:
        Share.objects.create(
            publication=publication, version=part.version, percent=part.percent, shadow=part.shadow
        )
    record(
        workspace=by.workspace,
        by=by.user,
        action=_ACTIONS[kind],
        object_id=alias.id,
        object_name=alias.name,
        details=_details(publication, parts),
    )
    notify(GATEWAY)
    return publication


_ACTIONS = {
    Publication.PUBLISH: "alias.published",
    Publication.ROLLBACK: "alias.rolled_back",
    Publication.SHARES: "alias.shared",
}


def _details(publication: Publication, parts: Sequence[Part]) -> dict[str, object]:
    details: dict[str, object] = {
        "version": publication.version_id,
        "serving_name": publication.version.serving_name,
        "sequence": publication.sequence,
    }
    for part in parts:
        details["shadow" if part.shadow else "canary"] = {
            "version": part.version.id,
            "serving_name": part.version.serving_name,
            "percent": part.percent,
        }
    return details
