"""Faults at real processes while a real run trains. After each: one winner, one version, nothing left."""

import os
import signal
import time
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest

from stillhouse.celery import app, ring
from stillhouse.jobs.control import request_cancel, request_pause, resume_job
from stillhouse.jobs.models import Attempt, Checkpoint, Outbox
from stillhouse.training.models import TrainingRun
from tests.chaos.house import LEASE_SECONDS, PATIENCE, House, settings_of
from tests.registry import DEMO_BASE
from tests.waiting import wait_for
from tests.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("stores", "transactional_db")]


def forget_every_doorbell() -> None:
    """Empty the broker."""
    with app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        channel.client.flushall()


def went_on(attempts: list[Attempt]) -> None:
    """The second attempt began at a checkpoint of the first."""
    first, second = attempts[0], attempts[1]
    assert 0 < second.resumed_step <= first.last_step, (first.last_step, second.resumed_step)


def kept_working(attempts: list[Attempt]) -> None:
    """The second attempt began at a checkpoint of the first, of which nobody may have heard: a worker does
    more than it could report, and its disk keeps it."""
    assert attempts[1].resumed_step > 0


def rode_out(
    house: House, world: World, fault: AbstractContextManager[None], *, seconds: float, epochs: float = 60.0
) -> None:
    """A run that trains goes through a fault of so many seconds in one attempt."""
    run = house.start_run(world, epochs=epochs)
    house.training(run)
    house.hit()
    with fault:
        time.sleep(seconds)
    assert len(house.check_success(run)) == 1


def test_kill_9_of_the_trainer(house: House, world: World) -> None:
    run = house.start_run(world)
    house.checkpointed(run)
    house.kill_trainers()
    attempts = house.check_success(run)
    assert [attempt.outcome for attempt in attempts] == ["failed", "succeeded"]
    assert attempts[0].code == "child_killed"
    went_on(attempts)


@pytest.mark.chaos
def test_kill_9_of_a_whole_worker_and_another_one_goes_on(house: House, world: World) -> None:
    run = house.start_run(world)
    house.checkpointed(run)
    lost = house.job(run).worker
    house.kill(lost)
    attempts = house.check_success(run)
    assert [attempt.outcome for attempt in attempts] == ["lost", "succeeded"]
    assert attempts[1].worker != lost
    went_on(attempts)


@pytest.mark.chaos
def test_a_worker_that_slept_past_its_lease_is_refused(house: House, world: World) -> None:
    run = house.start_run(world)
    house.checkpointed(run)
    sleeper = house.job(run).worker
    children = house.children()
    house.kill(sleeper, number=signal.SIGSTOP)
    for child in children:
        os.kill(child, signal.SIGSTOP)
    house.training(run, attempt=2)
    house.kill(sleeper, number=signal.SIGCONT)
    for child in children:
        os.kill(child, signal.SIGCONT)
    attempts = house.check_success(run)
    assert [attempt.outcome for attempt in attempts] == ["lost", "succeeded"]
    went_on(attempts)


def test_the_message_delivered_three_times(house: House, world: World) -> None:
    run = house.start_run(world, epochs=4)
    house.hit()
    for _ in range(3):
        ring(run.job_id, house.queue)
    assert len(house.check_success(run)) == 1


@pytest.mark.chaos
def test_the_broker_away_in_the_middle_and_at_the_finish(house: House, world: World) -> None:
    run = house.start_run(world)
    house.training(run)
    house.hit()
    with house.broker.away():
        attempts = house.check_success(run)
    assert len(attempts) == 1


@pytest.mark.chaos
def test_postgres_away_for_less_than_the_lease(house: House, world: World) -> None:
    rode_out(house, world, house.database.away(), seconds=2)


@pytest.mark.chaos
def test_postgres_away_for_longer_than_the_lease(house: House, world: World) -> None:
    run = house.start_run(world, epochs=100)
    house.checkpointed(run)
    with house.slow_trainers():
        house.hit()
        with house.database.away():
            time.sleep(LEASE_SECONDS * 1.5)
    attempts = house.check_success(run)
    assert [attempt.outcome for attempt in attempts] == ["lost", "succeeded"], "the worker stopped itself"
    kept_working(attempts)


@pytest.mark.chaos
def test_postgres_away_for_half_a_minute_and_for_a_minute_and_a_half(house: House, world: World) -> None:
    """Against the lease that a platform has unless told otherwise."""
    house.different = {"LEASE_SECONDS": "60", "CHECKPOINT_SECONDS": "5"}
    house.kill("web", "keeper")
    house.ensure()
    run = house.start_run(world, epochs=100, rows=120)
    house.checkpointed(run)
    with house.slow_trainers():
        with house.database.away():
            time.sleep(30)
        house.training(run, step=house.job(run).step)
        assert house.job(run).attempt == 1
        house.hit_now()
        with house.database.away():
            time.sleep(90)
    attempts = house.check_success(run)
    assert [attempt.outcome for attempt in attempts] == ["lost", "succeeded"], "the worker stopped itself"
    kept_working(attempts)


@pytest.mark.chaos
def test_the_store_away_and_cut_in_the_middle_of_an_upload(house: House, world: World) -> None:
    run = house.start_run(world)
    house.training(run)
    house.hit()
    with house.store.away():
        time.sleep(3)
    for _ in range(3):
        after = house.store.cuts + 1
        house.store.cut_after(20_000)
        wait_for(partial(house.store.has_cut, after), PATIENCE)
        assert not house.job(run).ended
    assert len(house.check_success(run)) == 1


@pytest.mark.chaos
def test_the_keeper_killed_and_two_keepers(house: House, world: World) -> None:
    house.kill("keeper")
    run = house.start_run(world, epochs=8)
    log = house.folder / "keeper-2.log"
    log.unlink(missing_ok=True)  # of another test
    house.ensure("keeper")
    house.training(run)
    house.ensure("keeper-2")
    wait_for(lambda: "standing by" in log.read_text(), PATIENCE)
    assert "keeping" not in log.read_text(), "one at a time"
    house.kill("keeper")
    wait_for(lambda: "keeping" in log.read_text(), PATIENCE)
    assert len(house.check_success(run)) == 1
    house.kill("keeper-2")


@pytest.mark.chaos
def test_the_web_process_killed(house: House, world: World) -> None:
    """Against the lease that a platform has unless told otherwise: web may take a while to start again."""
    house.different = {"LEASE_SECONDS": "60"}
    house.kill("web", "keeper")
    house.ensure()
    run = house.start_run(world)
    house.training(run)
    house.hit_now()
    house.kill("web")
    time.sleep(2)
    house.ensure("web")
    assert len(house.check_success(run)) == 1


@pytest.mark.chaos
def test_web_killed_between_commit_and_send(house: House, world: World) -> None:
    """The web process that took the form dies as soon as the run is committed, nobody having rung for it; and
    the broker forgets everything. The run is in the database, so it runs."""
    house.kill("keeper")
    data = house.data(world)
    form = {"adapter_name": "chaos", "base": DEMO_BASE, "data": data.pk, "preset": "quick", **settings_of(4)}
    with house.posting(world, "/w/acme/runs/new/", form):
        wait_for(TrainingRun.objects.exists, PATIENCE)
        house.kill("web")
    run = house.ours(TrainingRun.objects.get())
    assert Outbox.objects.filter(job=run.job_id, sent_at=None).exists(), "committed, and not sent"
    forget_every_doorbell()
    house.ensure()
    assert len(house.check_success(run)) == 1
    assert TrainingRun.objects.count() == 1


@pytest.mark.chaos
def test_a_keeper_that_is_stopped_is_replaced(house: House, world: World) -> None:
    """SIGSTOP: it lives, and does nothing. The second one takes back what a lost worker had; woken, the first
    one stands by."""
    run = house.start_run(world)
    house.checkpointed(run)
    logs = [house.folder / f"{name}.log" for name in ("keeper", "keeper-2")]
    logs[1].unlink(missing_ok=True)  # of another test
    house.ensure("keeper-2")
    wait_for(lambda: "standing by" in logs[1].read_text(), PATIENCE)
    house.kill("keeper", number=signal.SIGSTOP)
    house.kill(house.job(run).worker)
    attempts = house.check_success(run)
    assert [attempt.outcome for attempt in attempts] == ["lost", "succeeded"]
    assert "keeping" in logs[1].read_text()
    said = len(logs[0].read_text())
    house.kill("keeper", number=signal.SIGCONT)
    wait_for(lambda: "standing by" in logs[0].read_text()[said:], PATIENCE)
    house.kill("keeper-2")


@pytest.mark.chaos
def test_keeper_and_worker_killed_together(house: House, world: World) -> None:
    run = house.start_run(world)
    house.checkpointed(run)
    lost = house.job(run).worker
    house.kill("keeper", lost)
    time.sleep(LEASE_SECONDS)
    assert house.job(run).state == "running", "nobody is there to see it"
    house.ensure("keeper")
    attempts = house.check_success(run)
    assert [attempt.outcome for attempt in attempts] == ["lost", "succeeded"]
    went_on(attempts)


def test_answers_that_are_lost_on_the_way(house: House, world: World) -> None:
    """The platform does what it is asked, and the worker does not hear of it: it asks again, and nothing is
    done twice. A claim like that costs no attempt."""
    house.kill("gpu-2")
    for call in (b"/claim HTTP", b"/uploads HTTP", b"/checkpoints HTTP", b"/finish HTTP"):
        house.front.lose_answers(call, 2)
    run = house.start_run(world, epochs=30)  # long enough for several checkpoints on a quiet machine
    house.ended(run)
    # It had ended with the first finish that nobody heard of.
    wait_for(lambda: not house.front.is_losing(), PATIENCE)
    assert len(house.check_success(run)) == 1


@pytest.mark.chaos
def test_a_power_cut(house: House, world: World) -> None:
    """Everything at once, Postgres, the broker and the store in the middle of their writes included."""
    if house.servers is None:
        pytest.skip("somebody else's servers are not switched off")
    first = house.start_run(world)
    also = [house.start_run(world, epochs=4, data_name=name) for name in ("Running too", "Waiting")]
    house.checkpointed(first)
    house.cut_power()
    house.power_again()
    for run in (first, *also):
        house.ended(run)  # "nothing left" is asked of the whole house: nobody may be at work any more
    attempts = house.check_success(first)
    assert [attempt.outcome for attempt in attempts] == ["lost", "succeeded"]
    kept_working(attempts)
    for run in also:
        house.check_success(run)


@pytest.mark.chaos
def test_a_trainer_that_always_dies_is_given_up_in_words(house: House, world: World) -> None:
    run = house.start_run(world)
    house.checkpointed(run)
    for attempt in (1, 2, 3):
        house.training(run, attempt=attempt)
        house.kill_trainers()
        this = Attempt.objects.filter(job=run.job_id, number=attempt, ended_at__isnull=False)
        wait_for(this.exists, PATIENCE)
    job = house.ended(run)
    assert (job.state, job.attempt, job.failures) == ("failed", 3, 3)
    assert job.failure and "ended by signal 9" in job.failure["message"]
    house.check(run, "failed")
    assert Checkpoint.objects.filter(job=job, dropped_at=None).exists(), "a person may still go on from it"


@pytest.mark.chaos
def test_pause_and_resume(house: House, world: World) -> None:
    run = house.start_run(world)
    house.training(run)
    house.hit()
    request_pause(by=world.expert, job=run.job)
    wait_for(lambda: house.job(run).state == "paused", PATIENCE)
    house.check_nothing_left(run)
    resume_job(by=world.expert, job=run.job)
    attempts = house.check_success(run)
    assert [attempt.outcome for attempt in attempts] == ["paused", "succeeded"]
    went_on(attempts)


@pytest.mark.chaos
def test_cancel_keeps_the_last_checkpoint(house: House, world: World) -> None:
    run = house.start_run(world)
    step = house.checkpointed(run)
    house.hit()
    request_cancel(by=world.expert, job=run.job)
    house.check(run, "cancelled")
    assert Checkpoint.objects.filter(job=run.job_id, dropped_at=None, step__gte=step).exists()
