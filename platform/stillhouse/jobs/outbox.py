"""The doorbell: the only place that sends to Celery.

What it loses is rung again; what it doubles is refused at the claim.
"""

import logging
from datetime import timedelta

from django.db import transaction
from django.db.models import Max, Q
from django.db.models.functions import Now
from kombu.exceptions import KombuError, OperationalError

from stillhouse.celery import ring, waiting
from stillhouse.jobs.actions import ring_later
from stillhouse.jobs.models import QUEUED, Job, Outbox

log = logging.getLogger(__name__)

BATCH = 200
STALE_AFTER = timedelta(seconds=30)
KEPT_FOR = timedelta(days=1)
BROKER_TROUBLE = (OperationalError, KombuError, OSError)


def relay_outbox() -> int:
    """Send what waits in the outbox, oldest first; returns how many doorbells were rung.

    No transaction is open while the broker is talked to: a crash between sending and noting it rings twice,
    and a claim is won once. When the broker is away, the rows stay and the next call tries again.
    """
    rung = 0
    for entry in Outbox.objects.filter(sent_at=None).select_related("job").order_by("pk")[:BATCH]:
        if entry.job.state == QUEUED:
            try:
                ring(entry.job_id, entry.job.queue)
            except BROKER_TROUBLE as error:
                log.warning("the broker is away (%s); doorbells wait in the outbox", type(error).__name__)
                break
            rung += 1
        Outbox.objects.filter(pk=entry.pk).update(sent_at=Now())
    return rung


def ring_stale_doorbells() -> int:
    """Ring again for jobs that nobody claimed within 30 s, in queues whose doorbells the broker has lost.

    A queue that still holds doorbells at the broker is merely busy: more of them would pile up and help
    nobody.
    """
    stale = (
        Job.objects.filter(state=QUEUED)
        .annotate(
            last=Max("outbox_entries__sent_at"),
            unsent=Max("outbox_entries__pk", filter=Q(outbox_entries__sent_at=None)),
        )
        .filter(unsent=None, last__lt=Now() - STALE_AFTER)
        .order_by("created_at")
    )
    rung = 0
    for queue in sorted(set(stale.order_by().values_list("queue", flat=True))):
        try:
            if waiting(queue):
                continue
        except BROKER_TROUBLE as error:
            log.warning("the broker is away (%s); stale doorbells wait", type(error).__name__)
            break
        for job_id in list(stale.filter(queue=queue).values_list("pk", flat=True)[:BATCH]):
            rung += _ring_again(job_id)
    return rung


@transaction.atomic
def _ring_again(job_id: str) -> bool:
    job = Job.objects.select_for_update(skip_locked=True).filter(pk=job_id, state=QUEUED).first()
    if job is None:
        return False
    ring_later(job)
    return True


def forget_old_doorbells() -> int:
    """Delete doorbells rung more than a day ago whose jobs are no longer queued; returns how many."""
    old = Outbox.objects.filter(sent_at__lt=Now() - KEPT_FOR).exclude(job__state=QUEUED)
    return old.delete()[0]
