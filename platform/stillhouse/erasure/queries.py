"""Reads of erasures, within the member's workspace."""

from dataclasses import dataclass

from django.db.models import QuerySet

from stillhouse.accounts.models import Membership
from stillhouse.adapters.models import AdapterVersion
from stillhouse.core.errors import NotFound
from stillhouse.core.sealing import CannotOpen, unseal
from stillhouse.erasure.models import Erasure, Finding, Quarantine
from stillhouse.erasure.searching import PURPOSE
from stillhouse.publishing.models import Alias, Publication
from stillhouse.publishing.queries import aliases_of, publications_of
from stillhouse.training.models import TrainingRun


@dataclass(frozen=True)
class Made:
    """What was made from data: a run, its adapter version, the aliases that answer with it, and every
    publication that named it."""

    run: TrainingRun
    version: AdapterVersion | None
    aliases: list[Alias]
    publications: list[Publication]


def erasures(by: Membership) -> QuerySet[Erasure]:
    """The workspace's erasures, the newest first."""
    return Erasure.objects.filter(workspace=by.workspace).select_related(
        "dataset", "asked_by", "confirmed_by"
    )


def get_erasure(by: Membership, erasure_id: str) -> Erasure:
    """One erasure of the workspace; raises NotFound."""
    found = erasures(by).filter(pk=erasure_id).first()
    if found is None:
        raise NotFound("erasure")
    return found


def get_quarantine(by: Membership, erasure_id: str, version_id: str) -> Quarantine:
    """The quarantine of a version by an erasure of the workspace; raises NotFound."""
    found = (
        Quarantine.objects.filter(erasure=erasure_id, erasure__workspace=by.workspace, version=version_id)
        .select_related("erasure", "version__adapter")
        .first()
    )
    if found is None:
        raise NotFound("quarantine")
    return found


def findings_of(erasure: Erasure) -> list[Finding]:
    """By dataset, the newest version first."""
    return list(
        erasure.findings.select_related(
            "version__dataset", "version__report", "trial__job", "made__job", "made__dataset"
        ).defer("version__report__body")
    )


def text_of(erasure: Erasure) -> str:
    """What is looked for, while the erasure is under way; empty afterwards."""
    try:
        return unseal(PURPOSE, erasure.sealed) if erasure.sealed else ""
    except CannotOpen:
        return ""


def made_from(by: Membership, versions: list[str]) -> list[Made]:
    """Runs that were trained on one of these dataset versions, and what came of each."""
    runs = TrainingRun.objects.filter(workspace=by.workspace, data__in=versions)
    found = []
    for run in runs.select_related("job", "data__dataset", "version__adapter").order_by("-created_at"):
        version = getattr(run, "version", None)
        if version is None:
            found.append(Made(run, None, [], []))
        else:
            found.append(Made(run, version, aliases_of(version), publications_of(version)))
    return found


def quarantines_of(version: AdapterVersion) -> QuerySet[Quarantine]:
    """The erasures that hold the version back, undecided ones."""
    return version.quarantines.filter(decision="").select_related("erasure")
