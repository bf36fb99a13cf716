"""Writes of publishing: which version an alias answers with. Every change is a new row."""

from django.db import transaction
from django.db.models import Max

from stillhouse.accounts.access import require
from stillhouse.accounts.models import Membership
from stillhouse.adapters.models import APPROVED, AdapterVersion
from stillhouse.audit.actions import record
from stillhouse.core.errors import NotFound, UserError
from stillhouse.core.notify import GATEWAY, notify
from stillhouse.publishing.models import Alias, Publication
from stillhouse.publishing.queries import current_publication, rollback_target
from stillhouse.serving.queries import is_ready
from stillhouse.training.names import check_model_name


@transaction.atomic
def publish(*, by: Membership, alias_name: str, version: AdapterVersion) -> Publication:
    """Let the alias answer with the version from the next request on; the alias is made when it is new.

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
    if current and current.version_id == version.id:
        return current
    _check_ready(version)
    return _append(by, alias, version, Publication.PUBLISH)


@transaction.atomic
def rollback(*, by: Membership, alias: Alias) -> Publication:
    """Let the alias answer with what it answered with before.

    Rolling back twice goes back twice: what was rolled back from is never returned to. Raises NotFound,
    UserError `not_allowed`, `nothing_to_roll_back_to` or `not_ready`.
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
    _check_ready(target)
    return _append(by, locked, target, Publication.ROLLBACK)


def _check_approved(version: AdapterVersion) -> None:
    state = AdapterVersion.objects.values_list("state", flat=True).get(pk=version.pk)
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
        raise UserError(
            "not_ready",
            f"No replica is ready to serve {version} at the moment.",
            "version",
            "Look at the pool: is an engine running, and did the version load there?",
            status=409,
        )


def _append(by: Membership, alias: Alias, version: AdapterVersion, kind: str) -> Publication:
    """The next row of an alias that is locked."""
    last = alias.publications.aggregate(last=Max("sequence"))["last"] or 0
    publication = Publication.objects.create(
        alias=alias, sequence=last + 1, version=version, kind=kind, created_by=by.user
    )
    record(
        workspace=by.workspace,
        by=by.user,
        action="alias.published" if kind == Publication.PUBLISH else "alias.rolled_back",
        object_id=alias.id,
        object_name=alias.name,
        details={
            "version": version.id,
            "serving_name": version.serving_name,
            "sequence": publication.sequence,
        },
    )
    notify(GATEWAY)
    return publication
