"""Reads of publishing: aliases, what each answers with, and what a rollback would go to."""

from django.db.models import Q, QuerySet

from stillhouse.accounts.models import Membership
from stillhouse.adapters.models import APPROVED, AdapterVersion
from stillhouse.core.errors import NotFound
from stillhouse.publishing.models import Alias, Publication


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
    return alias.publications.select_related("version__adapter", "created_by").order_by("-sequence")


def current_publication(alias: Alias) -> Publication | None:
    """The newest row, which counts."""
    return history(alias).first()


def rollback_target(alias: Alias) -> AdapterVersion | None:
    """The version a rollback would go to; None when there is none.

    Publications pile up; a rollback takes off the pile what lay above its version. The target is what lies
    next under the current version and may still serve: never a version that somebody has rolled back from
    since.
    """
    pile: list[Publication] = []
    for publication in alias.publications.select_related("version__adapter").order_by("sequence"):
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
    """The aliases that answer with the version now."""
    candidates = Alias.objects.filter(publications__version=version).distinct().order_by("name")
    return [
        alias for alias in candidates if (now := current_publication(alias)) and now.version_id == version.id
    ]
