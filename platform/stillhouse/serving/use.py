"""Use of versions, as far as serving needs it: who was asked for lately, and a wish for one that is not
loaded."""

from datetime import timedelta

from django.db.models import F, Max, Q
from django.utils import timezone

from stillhouse.adapters.models import AdapterVersion
from stillhouse.serving.models import Placement, Pool
from stillhouse.usage.models import UsageHour

NOTE_EVERY = timedelta(minutes=1)
HOUR = timedelta(hours=1)

WANT_VERSION = """
    UPDATE serving_placement SET wanted_at = now()
    WHERE version_id = %s AND (wanted_at IS NULL OR wanted_at < now() - interval '1 second')"""
"""`want_version` for the gateway, which has no ORM: one parameter, the version's id."""


def want_version(*, version: AdapterVersion) -> None:
    """Load the version wherever it is placed, soon: its agents hear of it with their next report, within a
    second. Asking again is harmless. Not audited: every app's request may ask."""
    Placement.objects.filter(version=version).update(wanted_at=timezone.now())


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
