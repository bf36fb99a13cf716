"""What an agent reports, written down: the replica as it is, and exactly the versions it says it holds."""

from urllib.parse import urlsplit

from django.db import transaction
from django.utils import timezone

from stillhouse.adapters.models import AdapterVersion
from stillhouse.core.errors import UserError
from stillhouse.core.notify import GATEWAY, notify
from stillhouse.core.text import storable
from stillhouse.serving.models import Holding, Pool, Replica
from workers.contract import HeldVersion, PoolReport

MAX_URL = 200
Facts = tuple[str, str, bool, str]


@transaction.atomic
def record_report(pool: Pool, report: PoolReport) -> Replica:
    """Make the replica's rows say what the report says.

    The report is the whole truth of the replica: what it does not list is not there, so nothing survives an
    engine's restart that its agent has not reported again. The gateway is told when something it routes by
    has changed.
    """
    name = storable(report.replica)
    _check_url(report.url)
    before = _locked(pool, name)
    facts_before = _facts(before) if before else None
    ready_before = _ready(before) if before else set()
    replica = before or Replica(pool=pool, name=name)
    replica.url, replica.incarnation = report.url, storable(report.incarnation)[:80]
    replica.engine = storable(report.engine)[:80]
    replica.error = _wrong_base(pool, report)
    replica.healthy = report.healthy and not replica.error
    replica.reported_at = timezone.now()
    replica.save()
    _replace_holdings(replica, report)
    if facts_before != _facts(replica) or ready_before != _ready(replica):
        notify(GATEWAY)
    return replica


def _locked(pool: Pool, name: str) -> Replica | None:
    """The replica's row, locked: reports of one replica are written one after the other.

    The pool's row is locked first only while the replica is unknown, so that two first reports make one row.
    """
    rows = Replica.objects.select_for_update().filter(pool=pool, name=name)
    known = rows.first()
    if known:
        return known
    Pool.objects.select_for_update().get(pk=pool.pk)
    return rows.first()


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or len(url) > MAX_URL
        or not url.isprintable()
    ):
        raise UserError(
            "bad_url",
            f"{url[:80]!r} is not where an engine could be reached.",
            "url",
            "Report http://host:port of the engine.",
        )


def _facts(replica: Replica) -> Facts:
    return replica.url, replica.incarnation, replica.healthy, replica.error


def _ready(replica: Replica) -> set[str]:
    return set(replica.holdings.filter(state=Holding.READY).values_list("version_id", flat=True))


def _wrong_base(pool: Pool, report: PoolReport) -> str:
    """Why this engine cannot be of this pool; empty when it can.

    An adapter loads silently on any base of the same shapes, so digests decide.
    """
    if report.base_digest and report.base_digest != pool.base.digest:
        ours, theirs = pool.base.digest[:12], report.base_digest[:12]
        return f"The engine's weights have digest {theirs}…, {pool.base_id} has {ours}…"
    if report.healthy and report.base and report.base != pool.base_id:
        return f"The engine serves its base as {storable(report.base)[:80]}, not as {pool.base_id}."
    return ""


def _replace_holdings(replica: Replica, report: PoolReport) -> None:
    known = {
        version.serving_name: version
        for version in AdapterVersion.objects.filter(
            serving_name__in=[held.name for held in report.held], run__base_id=replica.pool.base_id
        )
    }
    held = {known[entry.name].id: (known[entry.name], entry) for entry in report.held if entry.name in known}
    stored = {holding.version_id: holding for holding in replica.holdings.all()}
    replica.holdings.exclude(version_id__in=held.keys()).delete()
    for version_id, (version, entry) in held.items():
        _save_if_changed(stored.get(version_id) or Holding(replica=replica, version=version), version, entry)


def _save_if_changed(holding: Holding, version: AdapterVersion, entry: HeldVersion) -> None:
    state, error = entry.state, storable(entry.error)
    if entry.digest != version.digest:
        state, error = (
            "failed",
            f"The replica holds digest {entry.digest[:12]}…, the version has {version.digest[:12]}…",
        )
    proof = entry.proof.model_dump(mode="json") if entry.proof else None
    wanted = (state, error, proof, entry.load_ms)
    if holding.pk and wanted == (holding.state, holding.error, holding.proof, holding.load_ms):
        return
    holding.state, holding.error, holding.proof, holding.load_ms = wanted
    holding.save()
