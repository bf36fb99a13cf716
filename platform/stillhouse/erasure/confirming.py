"""A lead's word on an erasure: do it, take it back, and what becomes of each quarantined adapter version."""

from collections.abc import Collection, Sequence

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from stillhouse.accounts.access import require
from stillhouse.accounts.models import Membership
from stillhouse.adapters.models import TRANSITIONS
from stillhouse.audit.actions import record
from stillhouse.core.errors import Conflict, NotFound, UserError
from stillhouse.core.notify import GATEWAY, notify
from stillhouse.core.sealing import unseal
from stillhouse.core.text import storable
from stillhouse.core.transitions import transition
from stillhouse.datasets.deriving import derive_version
from stillhouse.datasets.models import Comparison, DatasetVersion
from stillhouse.erasure.forgetting import forget_search
from stillhouse.erasure.models import Erasure, Finding, Quarantine
from stillhouse.erasure.quarantining import quarantine_trained_on
from stillhouse.erasure.searching import PURPOSE, scope_of
from stillhouse.evaluations.models import Evaluation
from stillhouse.jobs.control import request_cancel
from stillhouse.jobs.models import ENDED, Job
from stillhouse.publishing.retirement import retire_version
from stillhouse.training.models import RowPreview, TokenCount, TrainingRun
from stillhouse.training.queries import newest_held_out
from stillhouse.usage.kept import forget_kept
from workers.contract import DropContaining


@transaction.atomic
def confirm_erasure(
    *, by: Membership, erasure: Erasure, remade: Collection[str] = (), unread: bool = False
) -> Erasure:
    """Erase what was found: nothing may be made from those versions any more, work on them is cancelled, and
    adapter versions trained on them are quarantined. Their bytes go when the grace period is over; prompts
    that aliases keep and that hold the text go at once.

    `remade`: ids of versions to be made anew without those rows. `unread`: versions that could not be read go
    as well. Raises NotFound, UserError `not_allowed`, `nothing_found`, or Conflict `already_decided`,
    `still_searching` and `new_versions`.
    """
    locked = _lock(by, erasure)
    if locked.confirmed_at or locked.ended_at:
        raise Conflict("already_decided", "This erasure has been decided on already.")
    findings = list(
        locked.findings.select_related("version__dataset__workspace", "version__report", "trial__job").defer(
            "version__report__body"
        )
    )
    _check_complete(locked, findings)
    going = [each for each in findings if each.holds or (unread and each.unread)]
    if not going:
        raise UserError("nothing_found", "Nothing was found, so there is nothing to erase.", "text")
    erased = [each.version_id for each in going]
    held_out = [each for each in newest_held_out(by) if each.pk not in erased]
    for finding in going:
        if finding.version_id in remade and _leaves_rows(finding):
            finding.made = _remake(by, locked, finding.version, held_out)
        finding.erased = True
        finding.save(update_fields=["made", "erased"])
    DatasetVersion.objects.filter(pk__in=erased, erased_at=None).update(erased_at=Now())
    _cancel_work_on(by, erased, keep=[each.made.job_id for each in going if each.made])
    now = timezone.now()
    locked.confirmed_by, locked.confirmed_at = by.user, now
    locked.bytes_due_at = now + settings.ERASURE_GRACE
    locked.save(update_fields=["confirmed_by", "confirmed_at", "bytes_due_at"])
    record(
        workspace=by.workspace,
        by=by.user,
        action="erasure.confirmed",
        object_id=locked.pk,
        object_name=locked.why,
        details={
            "versions": erased,
            "text_digest": locked.digest,
            "bytes_go": locked.bytes_due_at.isoformat(),
        },
    )
    quarantine_trained_on(locked)
    if locked.sealed:
        forget_kept(by.workspace, unseal(PURPOSE, locked.sealed))
    return locked


@transaction.atomic
def withdraw_erasure(*, by: Membership, erasure: Erasure) -> None:
    """Take an erasure back, within the grace period: its versions may be used again, and what is still in
    quarantine has its state again. Before it is confirmed, the search is forgotten.

    Raises NotFound, UserError `not_allowed`, or Conflict `already_decided`.
    """
    locked = _lock(by, erasure)
    if locked.ended_at:
        raise Conflict("already_decided", "This erasure has ended: its bytes are gone.")
    erased = list(locked.findings.filter(erased=True).values_list("version_id", flat=True))
    elsewhere = Finding.objects.filter(version__in=erased, erased=True, erasure__withdrawn_at=None).exclude(
        erasure=locked
    )
    free = set(erased) - set(elsewhere.values_list("version_id", flat=True))
    DatasetVersion.objects.filter(pk__in=free, purged_at=None).update(erased_at=None)
    for making in locked.findings.exclude(made=None).select_related("made__job"):
        if making.made is not None and not making.made.job.ended:
            request_cancel(by=by, job=making.made.job)
    for quarantine in locked.quarantines.filter(decision="").select_related("version"):
        _settle(by, quarantine, Quarantine.KEEP, "The erasure was withdrawn.")
    locked.withdrawn_at = locked.ended_at = timezone.now()
    locked.save(update_fields=["withdrawn_at", "ended_at"])
    forget_search(locked)
    record(
        workspace=by.workspace,
        by=by.user,
        action="erasure.withdrawn",
        object_id=locked.pk,
        object_name=locked.why,
        details={"versions": sorted(free)},
    )


@transaction.atomic
def decide_quarantine(*, by: Membership, quarantine: Quarantine, decision: str, reason: str) -> None:
    """Let a quarantined adapter version serve as before, or retire it, with a reason.

    It serves again when no other erasure holds it. Raises NotFound, UserError `not_allowed`, `bad_decision`,
    `reason_missing`, `still_published`, or Conflict `already_decided`.
    """
    if quarantine.erasure.workspace_id != by.workspace_id:
        raise NotFound("erasure")
    require(by, "version.decide")
    if decision not in (Quarantine.KEEP, Quarantine.RETIRE):
        raise UserError("bad_decision", "Choose whether it is kept or retired.", "decision")
    if not reason.strip():
        raise UserError("reason_missing", "Say why.", "reason", "The audit trail keeps the reason.")
    locked = (
        Quarantine.objects.select_for_update(of=("self",)).select_related("version").get(pk=quarantine.pk)
    )
    if locked.decision:
        raise Conflict("already_decided", f"{locked.version} has been decided on already.")
    if decision == Quarantine.RETIRE:
        retire_version(by=by, version=locked.version, reason=reason)
    _settle(by, locked, decision, reason)


def _settle(by: Membership, quarantine: Quarantine, decision: str, reason: str) -> None:
    quarantine.decision, quarantine.reason = decision, storable(reason.strip())[:2000]
    quarantine.decided_by, quarantine.decided_at = by.user, timezone.now()
    quarantine.save(update_fields=["decision", "reason", "decided_by", "decided_at"])
    version = quarantine.version
    held = Quarantine.objects.filter(version=version, decision="").exists()
    if decision == Quarantine.KEEP and not held:
        transition(version, TRANSITIONS, quarantine.before)
        notify(GATEWAY)
    record(
        workspace=by.workspace,
        by=by.user,
        action="quarantine.decided",
        object_id=version.pk,
        object_name=str(version),
        details={"decision": decision, "reason": quarantine.reason[:500], "erasure": quarantine.erasure_id},
    )


def _lock(by: Membership, erasure: Erasure) -> Erasure:
    if erasure.workspace_id != by.workspace_id:
        raise NotFound("erasure")
    require(by, "dataset.erase")
    return Erasure.objects.select_for_update().get(pk=erasure.pk)


def _check_complete(erasure: Erasure, findings: Sequence[Finding]) -> None:
    if not all(each.trial.job.ended for each in findings):
        raise Conflict("still_searching", "The search has not ended yet.", "Wait until it has.")
    searched = {each.version_id for each in findings}
    if new := [each for each in scope_of(erasure.workspace_id, erasure.dataset) if each.pk not in searched]:
        raise Conflict(
            "new_versions",
            f"{new[0]} has come since the search, and was not looked at.",
            "Search again: it takes the new version in.",
        )


def _leaves_rows(finding: Finding) -> bool:
    report = getattr(finding.version, "report", None)
    return finding.rows is not None and report is not None and finding.rows < report.valid


def _remake(
    by: Membership, erasure: Erasure, version: DatasetVersion, held_out: Sequence[DatasetVersion]
) -> DatasetVersion:
    text = unseal(PURPOSE, erasure.sealed) if erasure.sealed else ""
    operation = DropContaining(text=text, file=erasure.file)
    return derive_version(by=by, version=version, operations=[operation], why=erasure.why, held_out=held_out)


def _cancel_work_on(by: Membership, versions: Sequence[str], *, keep: Collection[str]) -> None:
    """Ask everything that reads one of the versions to stop, but the making of those without the rows."""
    read = Q(data__in=versions)
    jobs = {
        *TrainingRun.objects.filter(read | Q(eval_data__in=versions)).values_list("job_id", flat=True),
        *Evaluation.objects.filter(read).values_list("job_id", flat=True),
        *RowPreview.objects.filter(version__in=versions).values_list("job_id", flat=True),
        *TokenCount.objects.filter(version__in=versions).values_list("job_id", flat=True),
        *Comparison.objects.filter(Q(before__in=versions) | Q(after__in=versions)).values_list(
            "job_id", flat=True
        ),
        *DatasetVersion.objects.filter(sources__parent__in=versions).values_list("job_id", flat=True),
    }
    for job in Job.objects.filter(pk__in=jobs - set(keep)).exclude(state__in=ENDED):
        request_cancel(by=by, job=job)
