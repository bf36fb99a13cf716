"""Adapter versions that were trained on erased rows serve nobody until a lead has decided."""

from django.db import transaction

from stillhouse.adapters.models import QUARANTINED, TRANSITIONS, AdapterVersion
from stillhouse.audit.actions import record
from stillhouse.core.notify import GATEWAY, notify
from stillhouse.core.transitions import transition
from stillhouse.erasure.models import Erasure, Quarantine
from stillhouse.serving.wanted import SERVABLE


@transaction.atomic
def quarantine_trained_on(erasure: Erasure) -> int:
    """Quarantine what was trained on the erasure's versions and may serve; returns how many.

    Called again it takes in what a run still brought to its end meanwhile.
    """
    erased = erasure.findings.filter(erased=True).values("version")
    trained = AdapterVersion.objects.filter(run__data__in=erased).exclude(quarantines__erasure=erasure)
    count = 0
    for version in trained.filter(state__in=[*SERVABLE, QUARANTINED]).select_related("adapter"):
        if version.state == QUARANTINED:  # by another erasure, whose row knows the state before
            before = version.quarantines.order_by("pk").values_list("before", flat=True)[0]
        else:
            before = version.state
            if not transition(version, TRANSITIONS, QUARANTINED):
                continue
        Quarantine.objects.create(erasure=erasure, version=version, before=before)
        record(
            workspace=erasure.workspace,
            by=None,
            action="version.quarantined",
            object_id=version.pk,
            object_name=str(version),
            details={"erasure": erasure.pk, "before": before},
        )
        count += 1
    if count:
        notify(GATEWAY)
    return count
