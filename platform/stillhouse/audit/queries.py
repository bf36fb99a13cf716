"""Reading the trail."""

from django.db.models import QuerySet

from stillhouse.accounts.models import Membership, Workspace
from stillhouse.audit.chain import GENESIS, hash_of
from stillhouse.audit.models import AuditEvent


def events(by: Membership) -> QuerySet[AuditEvent]:
    """The workspace's events, newest first."""
    return AuditEvent.objects.filter(workspace=by.workspace).select_related("actor").order_by("-sequence")


def verify_chain(workspace: Workspace) -> int | None:
    """Where the chain first breaks (the sequence of an event changed or gone), or None when it is whole.

    Events cut off at the very end leave a shorter, whole chain: compare the head with one noted outside.
    """
    expected, previous = 1, GENESIS
    for event in (
        AuditEvent.objects.filter(workspace=workspace).order_by("sequence").iterator(chunk_size=1000)
    ):
        if event.sequence != expected or event.previous_hash != previous or event.hash != hash_of(event):
            return expected
        expected, previous = expected + 1, event.hash
    return None
