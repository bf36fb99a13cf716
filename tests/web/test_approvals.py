"""Approval by a second person: said in words, and held by the database."""

import pytest
from django.db import DatabaseError, IntegrityError, connection, transaction

from stillhouse.accounts.models import Membership
from stillhouse.adapters.models import APPROVED, CANDIDATE, REJECTED, AdapterVersion
from stillhouse.approvals.actions import ask_approval, decide
from stillhouse.approvals.models import ApprovalRequest, Decision
from stillhouse.approvals.queries import decision_of, own_work, request_of, review_queue
from stillhouse.audit.models import AuditEvent
from stillhouse.core.errors import Conflict, NotFound, UserError
from stillhouse.serving.models import Placement
from tests.registry import another_lead, approved, at_once, candidate, evaluate, make_ready
from tests.world import World

pytestmark = pytest.mark.django_db


def asked(by: Membership) -> AdapterVersion:
    """Made, evaluated and asked for by the same member."""
    version = candidate(by)
    evaluate(version)
    ask_approval(by=by, version=version, note="Please.")
    return version


def refusal(
    by: Membership, version: AdapterVersion, verdict: str = "approved", reason: str = "Good."
) -> UserError:
    with pytest.raises(UserError) as caught:
        decide(by=by, version=version, verdict=verdict, reason=reason)
    assert not Decision.objects.filter(version=version).exists()
    assert AdapterVersion.objects.get(pk=version.pk).state == CANDIDATE
    return caught.value


def test_asking_needs_a_finished_evaluation_and_happens_once(world: World) -> None:
    version = candidate(world.expert)
    with pytest.raises(UserError) as caught:
        ask_approval(by=world.expert, version=version)
    assert caught.value.code == "not_evaluated"
    result = evaluate(version)
    request = ask_approval(by=world.expert, version=version, note=" Better on every type. ")
    assert request.evaluation == result.evaluation and request.note == "Better on every type."
    assert list(review_queue(world.lead)) == [request] and request_of(version) == request
    with pytest.raises(Conflict) as conflict:
        ask_approval(by=world.lead, version=version)
    assert conflict.value.code == "already_asked"


def test_a_lead_approves_what_an_expert_made(world: World) -> None:
    version = asked(world.expert)
    decision = decide(by=world.lead, version=version, verdict="approved", reason="Exact on every row.")
    assert version.state == AdapterVersion.objects.get(pk=version.pk).state == APPROVED
    assert decision_of(version) == decision and not review_queue(world.lead).exists()
    result = version.evaluations.get().result
    assert (decision.adapter_sha256, decision.data_sha256) == (version.digest, version.run.data.sha256)
    assert decision.template_sha256 == version.run.spec.template_sha256
    assert decision.evaluation_sha256 == result.rows_sha256
    assert (decision.asked_by, decision.run_started_by) == (world.expert.user, world.expert.user)
    event = AuditEvent.objects.get(action="version.approved")
    assert event.actor == world.lead.user and event.details["adapter_sha256"] == version.digest


def test_a_rejected_version_is_wanted_nowhere(world: World) -> None:
    version = asked(world.expert)
    make_ready(version)
    decide(by=world.lead, version=version, verdict="rejected", reason="Worse on renewals.")
    assert version.state == REJECTED and not Placement.objects.exists()


def test_an_expert_may_not_decide(world: World) -> None:
    error = refusal(world.expert, asked(world.lead))
    assert (error.code, error.status) == ("not_allowed", 403)


def test_a_lead_may_not_decide_on_the_own_run_or_the_own_request(world: World) -> None:
    own_run = asked(world.lead)
    error = refusal(world.lead, own_run)
    assert (error.code, error.status) == ("own_work", 403) and "started the run" in error.message
    own_request = candidate(world.expert)
    evaluate(own_request)
    request = ask_approval(by=world.lead, version=own_request)
    error = refusal(world.lead, own_request)
    assert error.code == "own_work" and "asked for" in error.message
    assert own_work(world.lead, own_request, request)
    assert not own_work(another_lead(world.lead), own_request, request)
    decide(by=another_lead(world.lead), version=own_request, verdict="approved", reason="Fine.")


@pytest.mark.parametrize(
    ("verdict", "reason", "code"),
    [
        ("approved", "", "reason_missing"),
        ("approved", " \n", "reason_missing"),
        ("maybe", "Good.", "bad_verdict"),
        ("approved", "x" * 2001, "too_long"),
    ],
)
def test_a_decision_needs_a_verdict_and_a_reason(world: World, verdict: str, reason: str, code: str) -> None:
    assert refusal(world.lead, asked(world.expert), verdict, reason).code == code


def test_a_lead_may_decide_without_being_asked_but_not_without_an_evaluation(world: World) -> None:
    version = candidate(world.expert)
    assert refusal(world.lead, version).code == "not_evaluated"
    result = evaluate(version)
    decision = decide(by=world.lead, version=version, verdict="approved", reason="Good.")
    assert (decision.request, decision.asked_by) == (None, None)
    assert decision.evaluation_sha256 == result.rows_sha256
    assert version.state == APPROVED


def test_a_lead_may_not_decide_on_their_own_run_though_nobody_asked(world: World) -> None:
    version = candidate(world.lead)
    evaluate(version)
    assert refusal(world.lead, version).code == "own_work"


def test_a_decision_stands(world: World) -> None:
    version = approved(world.expert, world.lead)
    with pytest.raises(Conflict) as caught:
        decide(by=world.lead, version=version, verdict="rejected", reason="I changed my mind.")
    assert caught.value.code == "already_decided"
    with pytest.raises(Conflict):
        ask_approval(by=world.expert, version=version)


def test_an_outsider_finds_nothing(world: World) -> None:
    version = asked(world.expert)
    with pytest.raises(NotFound):
        ask_approval(by=world.outsider, version=version)
    with pytest.raises(NotFound):
        decide(by=world.outsider, version=version, verdict="approved", reason="Mine now.")
    assert not review_queue(world.outsider).exists()
    assert version.state == CANDIDATE


INSERT = """
INSERT INTO approvals_decision (id, version_id, verdict, reason, decided_by_id, asked_by_id,
    run_started_by_id, adapter_sha256, data_sha256, template_sha256, evaluation_sha256, created_at)
VALUES (%s, %s, 'approved', 'by hand', %s, %s, %s, '', '', '', '', now())
"""


def insert_by_hand(request: ApprovalRequest, decided_by: Membership, pretended: Membership) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            INSERT, ["dec_x", request.version_id, decided_by.user_id, pretended.user_id, pretended.user_id]
        )


def test_the_database_refuses_a_self_approval_whatever_the_statement_pretends(world: World) -> None:
    other = another_lead(world.lead)
    own_run = request_of(asked(world.lead))
    version = candidate(world.expert)
    evaluate(version)
    own_request = ask_approval(by=world.lead, version=version)
    assert own_run is not None
    for request in (own_run, own_request):
        with pytest.raises(IntegrityError, match="decision_by_another_person"):
            insert_by_hand(request, world.lead, pretended=other)
    insert_by_hand(own_run, other, pretended=other)
    decision = Decision.objects.get()
    assert (decision.asked_by_id, decision.run_started_by_id) == (world.lead.user_id, world.lead.user_id)


@pytest.mark.parametrize(
    "statement", ["UPDATE approvals_decision SET reason = 'another'", "DELETE FROM approvals_decision"]
)
def test_the_database_refuses_to_change_a_decision(world: World, statement: str) -> None:
    approved(world.expert, world.lead)
    with (
        pytest.raises(DatabaseError, match="append-only"),
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute(statement)
    assert Decision.objects.get().reason.startswith("Better")


@pytest.mark.django_db(transaction=True)
def test_of_two_leads_deciding_at_once_one_wins(world: World) -> None:
    version = asked(world.expert)
    other = another_lead(world.lead)
    outcomes = at_once(
        lambda: decide(by=world.lead, version=version, verdict="approved", reason="Good."),
        lambda: decide(
            by=other, version=AdapterVersion.objects.get(pk=version.pk), verdict="rejected", reason="Bad."
        ),
    )
    [decision] = [outcome for outcome in outcomes if isinstance(outcome, Decision)]
    [conflict] = [outcome for outcome in outcomes if isinstance(outcome, Conflict)]
    assert conflict.code == "already_decided"
    assert AdapterVersion.objects.get(pk=version.pk).state == decision.verdict
    assert Decision.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_of_two_people_asking_at_once_one_request_is_made(world: World) -> None:
    version = candidate(world.expert)
    evaluate(version)
    outcomes = at_once(
        *[lambda by=by: ask_approval(by=by, version=version) for by in (world.expert, world.lead)]
    )
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 1
    assert ApprovalRequest.objects.count() == 1
