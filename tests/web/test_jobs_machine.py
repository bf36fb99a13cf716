"""Every way through the states of a job, in any order, against the real database."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.db.models import Count, F, Q
from django.db.models.functions import Now
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from stillhouse.accounts.models import Membership
from stillhouse.audit.queries import verify_chain
from stillhouse.core.errors import Conflict
from stillhouse.jobs.actions import finish_job, queue_job, reap_lost_leases, report_job
from stillhouse.jobs.checkpoints import record_checkpoint
from stillhouse.jobs.claiming import claim_job
from stillhouse.jobs.control import request_cancel, request_pause, resume_job, retry_job
from stillhouse.jobs.errors import Refused
from stillhouse.jobs.models import Attempt, Checkpoint, Job, Kind, Outbox, Share, Worker
from tests.world import World
from workers.contract import JobFailure, OutputFile, ReportRequest

pytestmark = pytest.mark.django_db
FILE = OutputFile(name="state.json", size=2, sha256="0" * 64)


class Jobs(RuleBasedStateMachine):
    """The model: which token of a job is the one that counts, and how often the job succeeded."""

    by: Membership
    """Whose workspace the jobs are of; a subclass says."""
    jobs: Bundle[str] = Bundle("jobs")
    tokens: Bundle[tuple[str, str]] = Bundle("tokens")

    def __init__(self) -> None:
        super().__init__()
        self.valid: dict[str, str] = {}
        self.wins: dict[str, int] = {}
        self.keys: dict[str, str] = {}
        self.savepoint = transaction.atomic()
        self.savepoint.__enter__()
        Worker.objects.create(name="drained", queue="gpu", draining_since=Now())

    def teardown(self) -> None:
        assert verify_chain(self.by.workspace) is None
        transaction.set_rollback(True)
        self.savepoint.__exit__(None, None, None)

    @rule(target=jobs)
    def queue(self) -> str:
        job = queue_job(
            workspace=self.by.workspace, kind=Kind.TRAIN, queue="gpu", subject="r", spec={}, by=self.by.user
        )
        self.wins[job.pk] = 0
        return str(job.pk)

    @rule(target=tokens, job=jobs, worker=st.sampled_from(["w", "w", "w", "drained"]))
    def claim(self, job: str, worker: str) -> Any:
        waiting = Job.objects.get(pk=job).state == "queued"
        limited = Share.objects.filter(minutes_per_month=0).exists()
        key = f"{len(self.keys):032}"
        try:
            claimed = claim_job(job_id=job, worker=worker, key=key)
        except Refused:
            assert not waiting or limited or worker == "drained"
            return multiple()
        assert waiting and not limited and worker != "drained"
        self.valid[job] = claimed.token
        self.keys[claimed.token] = key
        return job, claimed.token

    @rule(held=tokens)
    def claim_again(self, held: tuple[str, str]) -> None:
        """The answer was lost on the way; where the job waits it would be a claim like any other."""
        job, token = held
        state = Job.objects.get(pk=job).state
        if state == "queued":
            return
        try:
            claimed = claim_job(job_id=job, worker="w", key=self.keys[token])
        except Refused:
            assert state != "running" or self.valid.get(job) != token
        else:
            assert state == "running" and claimed.token == token == self.valid[job]

    @rule(held=tokens, step=st.integers(0, 50))
    def report(self, held: tuple[str, str], step: int) -> None:
        job, token = held
        row = Job.objects.get(pk=job)
        request = ReportRequest(token=token, phase="training", step=step, total_steps=50)
        try:
            action = report_job(job_id=job, token=token, report=request)
        except Refused:
            assert self.valid.get(job) != token or row.state != "running"
            return
        assert self.valid[job] == token and row.state == "running"
        assert (action == "cancel") >= (row.cancel_requested_at is not None)
        assert action == "continue" or row.cancel_requested_at or row.pause_requested_at

    @rule(held=tokens, step=st.integers(1, 50))
    def checkpoint(self, held: tuple[str, str], step: int) -> None:
        job, token = held
        running = Job.objects.get(pk=job).state == "running"
        try:
            record_checkpoint(job_id=job, token=token, step=step, files=[FILE])
        except Refused:
            assert self.valid.get(job) != token or not running
        else:
            assert self.valid[job] == token and running

    @rule(held=tokens, how=st.sampled_from(["success", "user", "platform", "cancelled"]))
    def finish(self, held: tuple[str, str], how: str) -> None:
        job, token = held

        def win(row: Job) -> None:
            self.wins[row.pk] += 1

        fault: Any = how
        failure = JobFailure(fault=fault, code="x", message="x") if how in ("user", "platform") else None
        try:
            finish_job(job_id=job, token=token, apply=win, failure=failure, cancelled=how == "cancelled")
        except Refused:
            assert self.valid.get(job) != token
        else:
            assert self.valid[job] == token

    @rule(held=consumes(tokens))
    def lose(self, held: tuple[str, str]) -> None:
        job, _ = held
        lost = Job.objects.filter(pk=job, state="running").update(lease_until=Now() - timedelta(seconds=1))
        assert reap_lost_leases() == lost
        if lost:
            del self.valid[job]

    @rule(minutes=st.sampled_from([0, 10_000, None]))
    def limit(self, minutes: int | None) -> None:
        """The operator changes the workspace's quota; what runs goes on."""
        Share.objects.update_or_create(
            workspace=self.by.workspace, queue="gpu", defaults={"minutes_per_month": minutes}
        )

    @rule(job=jobs, from_start=st.booleans(), ask=st.sampled_from(["pause", "resume", "cancel", "retry"]))
    def person(self, job: str, from_start: bool, ask: str) -> None:
        row = Job.objects.get(pk=job)
        before = row.state
        try:
            if ask == "pause":
                request_pause(by=self.by, job=row)
            elif ask == "resume":
                resume_job(by=self.by, job=row)
            elif ask == "cancel":
                request_cancel(by=self.by, job=row)
            else:
                retry_job(by=self.by, job=row, from_start=from_start)
        except Conflict:
            assert Job.objects.get(pk=job).state == before

    @invariant()
    def at_most_one_success(self) -> None:
        for row in Job.objects.filter(pk__in=self.wins):
            assert self.wins[row.pk] == (row.state == "succeeded")

    @invariant()
    def one_open_attempt_while_it_runs(self) -> None:
        open_jobs = set(Attempt.objects.filter(ended_at=None).values_list("job_id", flat=True))
        assert open_jobs == set(Job.objects.filter(state="running").values_list("pk", flat=True))
        counted = Job.objects.filter(pk__in=self.wins).annotate(rows=Count("attempts"))
        assert all(number == rows for number, rows in counted.values_list("attempt", "rows"))

    @invariant()
    def whatever_waits_has_a_doorbell(self) -> None:
        rung = Outbox.objects.values("job_id")
        assert not Job.objects.filter(state="queued").exclude(pk__in=rung).exists()

    @invariant()
    def nothing_is_gone_on_from_that_should_not_be(self) -> None:
        usable = Checkpoint.objects.filter(dropped_at=None)
        assert not usable.filter(Q(job__state="succeeded")).exists()
        lying = usable.filter(attempt__gte=F("job__beginning")).values("job").annotate(rows=Count("pk"))
        assert all(each["rows"] <= 3 for each in lying)

    @invariant()
    def failures_are_counted(self) -> None:
        for row in Job.objects.filter(pk__in=self.wins):
            assert row.failures <= row.max_attempts
            assert row.state != "queued" or row.failures < row.max_attempts


def test_no_way_through_the_states_breaks_a_promise(world: World) -> None:
    run_state_machine_as_test(
        type("JobsOfExpert", (Jobs,), {"by": world.expert}),
        settings=settings(
            max_examples=20,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
