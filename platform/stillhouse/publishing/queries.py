"""Reads of publishing: aliases, what each answers with, and what a rollback would go to."""

from datetime import datetime

from django.db.models import OuterRef, Q, QuerySet, Subquery

from stillhouse.accounts.models import Membership
from stillhouse.adapters.models import APPROVED, AdapterVersion
from stillhouse.core.errors import NotFound
from stillhouse.publishing.models import Alias, Publication, Share


def aliases(by: Membership) -> QuerySet[Alias]:
    """The workspace's aliases by name."""
    return Alias.objects.filter(workspace=by.workspace).order_by("name")


def get_alias(by: Membership, name: str) -> Alias:
    """One alias of the workspace, by name or id; raises NotFound."""
    alias = aliases(by).filter(Q(name=name) | Q(pk=name)).first()
    if alias is None:
        raise NotFound("alias")
    return alias


def history(alias: Alias) -> QuerySet[Publication]:
    """The alias's publications, the newest first."""
    publications = alias.publications.select_related("version__adapter", "created_by")
    return publications.prefetch_related("shares__version__adapter").order_by("-sequence")


def current_publication(alias: Alias) -> Publication | None:
    """The newest row, which counts."""
    return history(alias).first()


def canary_of(publication: Publication) -> Share | None:
    """The version that answers a part of the requests in the place of the alias's own."""
    return next((share for share in publication.shares.all() if not share.shadow), None)


def shadow_of(publication: Publication) -> Share | None:
    """The version that gets copies of requests."""
    return next((share for share in publication.shares.all() if share.shadow), None)


def rollback_target(alias: Alias) -> AdapterVersion | None:
    """The version a rollback would go to; None when there is none.

    Publications pile up; a rollback takes off the pile what lay above its version. The target is what lies
    next under the current version and may still serve: never a version that somebody has rolled back from
    since.
    """
    pile: list[Publication] = []
    rows = alias.publications.exclude(kind=Publication.SHARES)  # those keep the version they found
    for publication in rows.select_related("version__adapter").order_by("sequence"):
        if publication.kind == Publication.ROLLBACK:
            while pile and pile[-1].version_id != publication.version_id:
                pile.pop()
            continue
        pile.append(publication)
    current = current_publication(alias)
    for publication in reversed(pile):
        version = publication.version
        if current and version.id != current.version_id and version.state == APPROVED:
            return version
    return None


def aliases_of(version: AdapterVersion) -> list[Alias]:
    """The aliases that answer with the version now, be it a part of their requests."""
    named = Q(publications__version=version) | Q(publications__shares__version=version)
    candidates = Alias.objects.filter(named).distinct().order_by("name")
    return [
        alias for alias in candidates if (now := current_publication(alias)) and _answers_with(now, version)
    ]


def publications_of(version: AdapterVersion) -> list[Publication]:
    """Every publication that named the version, be it for a part of the requests, the newest first."""
    named = Q(version=version) | Q(shares__version=version)
    return list(Publication.objects.filter(named).select_related("alias").order_by("-created_at").distinct())


def aliases_by_version(by: Membership) -> dict[str, list[Alias]]:
    """The workspace's aliases by the id of each version that answers for them now; a canary's, too."""
    rows = Publication.objects.filter(alias__workspace=by.workspace).order_by("alias_id", "-sequence")
    latest = rows.distinct("alias_id").select_related("alias").prefetch_related("shares")
    found: dict[str, list[Alias]] = {}
    for publication in sorted(latest, key=lambda one: one.alias.name):
        canary = canary_of(publication)
        for version_id in {publication.version_id, canary.version_id if canary else publication.version_id}:
            found.setdefault(version_id, []).append(publication.alias)
    return found


def _answers_with(publication: Publication, version: AdapterVersion) -> bool:
    canary = canary_of(publication)
    return version.id in (publication.version_id, canary.version_id if canary else None)


def live_version_ids(*, since: datetime) -> set[str]:
    """Ids of the versions that some alias answers with now, or has answered with since then: what serving
    keeps loaded, so that a rollback finds its version in place."""
    later = Publication.objects.filter(alias=OuterRef("alias"), sequence__gt=OuterRef("sequence"))
    superseded_at = Subquery(later.order_by("sequence").values("created_at")[:1])
    live = Publication.objects.annotate(superseded_at=superseded_at).filter(
        Q(superseded_at=None) | Q(superseded_at__gte=since)
    )
    shares = Share.objects.filter(publication__in=live)
    return set(live.values_list("version_id", flat=True)) | set(shares.values_list("version_id", flat=True))
