"""The end of a version: it answers nobody any more, and serving lets go of it."""

from django.db import transaction

from stillhouse.accounts.access import require
from stillhouse.accounts.models import Membership
from stillhouse.adapters.models import QUARANTINED, RETIRED, TRANSITIONS, AdapterVersion
from stillhouse.audit.actions import record
from stillhouse.core.errors import NotFound, UserError
from stillhouse.core.notify import GATEWAY, notify
from stillhouse.core.transitions import transition
from stillhouse.publishing.queries import aliases_of
from stillhouse.serving.actions import unplace_version


@transaction.atomic
def retire_version(*, by: Membership, version: AdapterVersion, reason: str) -> AdapterVersion:
    """Take an approved version out of use for good: no app may call it, no rollback goes to it, and replicas
    unload it. What it was made of stays.

    One in quarantine may be named by aliases still: there it answers nobody already, and may be all there is.

    Raises NotFound for another workspace's version, UserError `not_allowed`, `reason_missing`,
    `still_published` or `not_approved`.
    """
    if version.adapter.workspace_id != by.workspace_id:
        raise NotFound("adapter version")
    require(by, "alias.publish")
    if not reason.strip():
        raise UserError(
            "reason_missing", "Say why it is retired.", "reason", "Whoever finds it later will want to know."
        )
    locked = AdapterVersion.objects.select_for_update().get(pk=version.pk)  # nobody publishes it meanwhile
    named = [] if locked.state == QUARANTINED else aliases_of(version)
    if named:
        raise UserError(
            "still_published",
            f"{version} answers as {', '.join(alias.name for alias in named)}.",
            "version",
            "Publish another version there first, or roll back.",
            status=409,
        )
    if not transition(version, TRANSITIONS, RETIRED):
        raise UserError(
            "not_approved",
            f"{version} is {version.state}: only an approved version is retired.",
            "version",
            status=409,
        )
    record(
        workspace=by.workspace,
        by=by.user,
        action="version.retired",
        object_id=version.id,
        object_name=str(version),
        details={"reason": reason.strip()[:500]},
    )
    unplace_version(version=version)
    notify(GATEWAY)
    return version
