"""Use of versions, as far as serving needs it: who was asked for lately, and a wish for one that is not
loaded."""

from datetime import timedelta

from django.db import connection
from django.db.models import F, Max, Q
from django.utils import timezone

from stillhouse.adapters.models import AdapterVersion
from stillhouse.serving.models import Placement, Pool
from stillhouse.serving.wishes import WANT_VERSION
from stillhouse.usage.models import UsageHour

NOTE_EVERY = timedelta(minutes=1)
HOUR = timedelta(hours=1)


def want_version(*, version: AdapterVersion) -> None:
    """Load the version wherever it is placed, soon: its agents are woken. Asking again is harmless, and does
    nothing within a second. Not audited: every app's request may ask."""
    with connection.cursor() as cursor:
        cursor.execute(WANT_VERSION, [version.pk])


def note_use(pool: Pool) -> None:
    """Bring `used_at` of the pool's placements up to date from the usage hours; at most once a minute, by
    whichever process is first."""
    now = timezone.now()
    due = Q(use_noted_at=None) | Q(use_noted_at__lt=now - NOTE_EVERY)
    if not Pool.objects.filter(due, pk=pool.pk).update(use_noted_at=now):
        return
    hours = UsageHour.objects.filter(hour__gt=now - 2 * HOUR, requests__gt=F("failed"), shadow=False)
    last_hours = dict(hours.exclude(version="").values_list("version").annotate(Max("hour")))
    for placement in Placement.objects.filter(pool=pool, version__in=list(last_hours)):
        used_at = min(now, last_hours[placement.version_id] + HOUR)
        Placement.objects.filter(pk=placement.pk).update(used_at=used_at)
