"""What an agent reports, written down: the replica as it is, and exactly the versions it says it holds."""

from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from django.db import transaction
from django.utils import timezone

from stillhouse.core.errors import UserError
from stillhouse.core.notify import GATEWAY, notify
from stillhouse.core.text import storable
from stillhouse.serving.models import Holding, Pool, Replica
from stillhouse.serving.wanted import Chosen, chosen_for
from workers.contract import HeldVersion, PoolReport

MAX_URL = 200
OPERATOR, AGENT = "operator", "agent"
"""Who drains a replica."""
Facts = tuple[str, str, bool, str, str]


@transaction.atomic
def record_report(pool: Pool, report: PoolReport, published: Collection[str]) -> tuple[Replica, list[Chosen]]:
    """Make the replica's rows say what the report says; also returns what it should hold.

    The report is the whole truth of the replica: what it does not list is not there, so nothing survives an
    engine's restart that its agent has not reported again. What it should not hold any more is not written
    down, so that nobody is sent there while the agent unloads it. The gateway is told when something it
    routes by has changed.
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
    replica.trouble = storable(report.trouble)[:300]
    replica.capacity = report.capacity
    if replica.draining != OPERATOR:
        replica.draining = AGENT if report.leaving else ""
    replica.reported_at = timezone.now()
    replica.save()
    chosen = chosen_for(replica, published)
    _replace_holdings(replica, report, chosen)
    if facts_before != _facts(replica) or ready_before != _ready(replica):
        notify(GATEWAY)
    return replica, chosen


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
    return replica.url, replica.incarnation, replica.healthy, replica.error, replica.draining


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


def _replace_holdings(replica: Replica, report: PoolReport, chosen: Sequence[Chosen]) -> None:
    known = {item.name: item for item in chosen}
    held = {known[entry.name].version_id: entry for entry in report.held if entry.name in known}
    digests = {item.version_id: item.digest for item in chosen}
    stored = {holding.version_id: holding for holding in replica.holdings.all()}
    replica.holdings.exclude(version_id__in=held.keys()).delete()
    for version_id, entry in held.items():
        holding = stored.get(version_id) or Holding(replica=replica, version_id=version_id)
        _save_if_changed(holding, digests[version_id], entry)


def _save_if_changed(holding: Holding, digest: str, entry: HeldVersion) -> None:
    state, error = entry.state, storable(entry.error)
    if entry.digest != digest:
        state, error = (
            "failed",
            f"The replica holds digest {entry.digest[:12]}…, the version has {digest[:12]}…",
        )
    proof = entry.proof.model_dump(mode="json") if entry.proof else None
    wanted = (state, error, proof, entry.load_ms)
    if holding.pk and wanted == (holding.state, holding.error, holding.proof, holding.load_ms):
        return
    holding.state, holding.error, holding.proof, holding.load_ms = wanted
    holding.save()
