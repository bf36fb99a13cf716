"""The doorbell: the only place that sends to Celery.

What it loses is rung again; what it doubles is refused at the claim.
"""

import logging
from datetime import timedelta

from django.db import transaction
from django.db.models import Max, Q, QuerySet
from django.db.models.functions import Now
from kombu.exceptions import KombuError, OperationalError

from stillhouse.celery import ring, waiting
from stillhouse.jobs.actions import ring_later
from stillhouse.jobs.models import QUEUED, RUNNING, Job, Outbox, Worker
from stillhouse.jobs.shares import free_slots, turns

log = logging.getLogger(__name__)

BATCH = 200
STALE_AFTER = timedelta(seconds=30)
KEPT_FOR = timedelta(days=1)
UNHEARD_AFTER = timedelta(seconds=60)
"""A doorbell that was lost is rung again before: one that is so old lies at the broker."""
BROKER_TROUBLE = (OperationalError, KombuError, OSError)


def relay_outbox() -> int:
    """Send what waits in the outbox; returns how many doorbells were rung.

    In each queue as many as there are free slots, and in the order in which the jobs have their turn: the
    rest waits here, where the order may still change. No transaction is open while the broker is talked to: a
    crash between sending and noting it rings twice, and a claim is won once. When the broker is away, the
    rows stay and the next call tries again.
    """
    unsent = Outbox.objects.filter(sent_at=None)
    unsent.exclude(job__state=QUEUED).update(sent_at=Now())
    try:
        return sum(_ring_queue(queue) for queue in sorted(set(unsent.values_list("job__queue", flat=True))))
    except BROKER_TROUBLE as error:
        log.warning("the broker is away (%s); doorbells wait in the outbox", type(error).__name__)
        return 0


def _ring_queue(queue: str) -> int:
    slots = free_slots(queue, STALE_AFTER)
    if slots == 0:
        return 0
    waits = set(Outbox.objects.filter(sent_at=None, job__queue=queue).values_list("job_id", flat=True))
    rung = 0
    for job_id in [job_id for job_id in turns(queue) if job_id in waits][: BATCH if slots is None else slots]:
        ring(job_id, queue)
        Outbox.objects.filter(job_id=job_id, sent_at=None).update(sent_at=Now())
        rung += 1
    return rung


def rings_unheard(worker: Worker) -> bool:
    """Whether a doorbell lies at the broker that this worker should have taken, as it does nothing."""
    unclaimed = _unclaimed(UNHEARD_AFTER).filter(queue__in=worker.queue.split(","))
    return unclaimed.exists() and not Job.objects.filter(state=RUNNING, worker=worker.name).exists()


def ring_stale_doorbells() -> int:
    """Ring again for jobs that nobody claimed within 30 s, in queues whose doorbells the broker has lost.

    A queue that still holds doorbells at the broker is merely busy: more of them would pile up and help
    nobody.
    """
    stale = _unclaimed(STALE_AFTER).order_by("created_at")
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


def _unclaimed(since: timedelta) -> QuerySet[Job]:
    """Queued jobs that were rung for last longer ago than this."""
    return (
        Job.objects.filter(state=QUEUED)
        .annotate(
            last=Max("outbox_entries__sent_at"),
            unsent=Max("outbox_entries__pk", filter=Q(outbox_entries__sent_at=None)),
        )
        .filter(unsent=None, last__lt=Now() - since)
    )


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
