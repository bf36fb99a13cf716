"""Writes of approvals: asking, and deciding what somebody else made."""

from django.db import transaction

from stillhouse.accounts.access import require
from stillhouse.accounts.models import Membership
from stillhouse.adapters.models import CANDIDATE, TRANSITIONS, AdapterVersion
from stillhouse.approvals.models import ApprovalRequest, Decision
from stillhouse.approvals.queries import decision_of, own_work, request_of
from stillhouse.audit.actions import record
from stillhouse.core.errors import Conflict, NotFound, UserError
from stillhouse.core.notify import GATEWAY, notify
from stillhouse.core.text import storable
from stillhouse.core.transitions import transition
from stillhouse.evaluations.models import EvaluationResult
from stillhouse.evaluations.queries import latest_result
from stillhouse.serving.actions import unplace_version

MAX_TEXT = 2000


@transaction.atomic
def ask_approval(*, by: Membership, version: AdapterVersion, note: str = "") -> ApprovalRequest:
    """Ask that a candidate be allowed to serve, on the strength of its newest evaluation.

    Raises NotFound, UserError `not_evaluated`, or Conflict `not_a_candidate` and `already_asked`.
    """
    locked = _locked(by, version)
    require(by, "approval.ask")
    if locked.state != CANDIDATE:
        raise Conflict("not_a_candidate", f"{version} is {locked.state} already.")
    if ApprovalRequest.objects.filter(version=locked).exists():
        raise Conflict("already_asked", f"Somebody has asked for {version} already.")
    result = _evaluated(locked)
    request = ApprovalRequest.objects.create(
        version=locked, evaluation=result.evaluation, note=_text(note, "note"), asked_by=by.user
    )
    record(
        workspace=by.workspace,
        by=by.user,
        action="approval.asked",
        object_id=version.id,
        object_name=str(version),
        details={"request": request.id, "evaluation_sha256": result.rows_sha256},
    )
    return request


@transaction.atomic
def decide(*, by: Membership, version: AdapterVersion, verdict: str, reason: str) -> Decision:
    """Approve or reject a version, once, with a reason, by somebody who neither made it nor asked.

    The decision holds the digests of what was judged: the evaluation that the request speaks of, or the
    newest one when nobody asked. Raises NotFound, UserError `not_allowed`, `bad_verdict`, `reason_missing`,
    `not_evaluated`, `own_work`, or Conflict `already_decided`.
    """
    locked = _locked(by, version)
    require(by, "version.decide")
    _check_words(verdict, reason)
    request = request_of(locked)
    if decision_of(locked) is not None or locked.state != CANDIDATE:
        raise Conflict("already_decided", f"{version} has been decided on already: it is {locked.state}.")
    _refuse_own_work(by, locked, request)
    result = request.evaluation.result if request else _evaluated(locked)
    decision = Decision.objects.create(
        version=locked,
        request=request,
        verdict=verdict,
        reason=_text(reason, "reason"),
        decided_by=by.user,
        asked_by=request.asked_by if request else None,
        run_started_by=locked.run.started_by,
        adapter_sha256=locked.digest,
        data_sha256=locked.manifest.data_sha256,
        template_sha256=locked.manifest.template_sha256,
        evaluation_sha256=result.rows_sha256,
    )
    if not transition(version, TRANSITIONS, verdict):
        raise Conflict("already_decided", f"{version} has been decided on already.")
    record(
        workspace=by.workspace,
        by=by.user,
        action=f"version.{verdict}",
        object_id=version.id,
        object_name=str(version),
        details={
            "decision": decision.id,
            "adapter_sha256": decision.adapter_sha256,
            "data_sha256": decision.data_sha256,
            "template_sha256": decision.template_sha256,
            "evaluation_sha256": decision.evaluation_sha256,
        },
    )
    if verdict == Decision.REJECTED:
        unplace_version(version=version)
    notify(GATEWAY)
    return decision


def _locked(by: Membership, version: AdapterVersion) -> AdapterVersion:
    """The version's row, locked: of two people at once the second sees what the first did. NotFound for
    outsiders."""
    row = (
        AdapterVersion.objects.select_for_update(of=("self",))
        .select_related("adapter", "run__started_by")
        .filter(pk=version.pk, adapter__workspace=by.workspace)
        .first()
    )
    if row is None:
        raise NotFound("adapter version")
    return row


def _evaluated(version: AdapterVersion) -> EvaluationResult:
    """What its newest finished evaluation found."""
    if result := latest_result(version):
        return result
    raise UserError(
        "not_evaluated",
        f"{version} has no finished evaluation yet, and without one nobody could judge it.",
        "evaluation",
        "Wait for the evaluation to finish, or start it again if it failed.",
        status=409,
    )


def _refuse_own_work(by: Membership, version: AdapterVersion, request: ApprovalRequest | None) -> None:
    """Said here in words; a constraint of the database says it again, to every program."""
    if not own_work(by, version, request):
        return
    made = by.user_id == version.run.started_by_id
    whose = "started the run that made it" if made else "asked for its approval"
    raise UserError(
        "own_work",
        f"You {whose}, so you cannot decide on {version}.",
        "version",
        "Ask another lead of the workspace to look at it.",
        status=403,
    )


def _check_words(verdict: str, reason: str) -> None:
    if verdict not in (Decision.APPROVED, Decision.REJECTED):
        raise UserError(
            "bad_verdict", f"There is no verdict {verdict[:40]!r}.", "verdict", "Use approved or rejected."
        )
    if not reason.strip():
        raise UserError(
            "reason_missing",
            "A decision needs a reason.",
            "reason",
            "Write a sentence that explains it to whoever reads it later.",
        )


def _text(text: str, place: str) -> str:
    if len(text) > MAX_TEXT:
        raise UserError(
            "too_long",
            f"The {place} has {len(text)} characters; {MAX_TEXT} is the most.",
            place,
            "Shorten it.",
        )
    return storable(text.strip())
