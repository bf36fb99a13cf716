"""A run in a real browser: followed live, the same in every tab, cancelled, begun with settings of one's own.

Workers are played by the actions that their calls end in; the platform with real ones is the demonstration.
"""

import re
from datetime import timedelta

import pytest
from django.db.models.functions import Now
from playwright.sync_api import Page, expect

from stillhouse.jobs.actions import finish_job, reap_lost_leases, report_job
from stillhouse.jobs.claiming import claim_job
from stillhouse.jobs.models import Job
from stillhouse.training.models import TrainingRun
from tests.e2e.visits import Visit
from tests.proxy import SORRY, STARTING, Proxy
from tests.registry import available_base, data_version, started_run
from tests.world import World
from workers.contract import JobFailure, MetricPoint, ReportRequest

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("stores", "transactional_db")]


def report(run: TrainingRun, token: str, steps: range) -> None:
    metrics = [
        MetricPoint(step=step, values={"loss": 2.0 / step, "tokens_per_second": 200}) for step in steps
    ]
    body = ReportRequest(
        token=token,
        phase="training",
        message=f"Learning, step {steps[-1]}.",
        step=steps[-1],
        total_steps=30,
        eta_seconds=65,
        metrics=metrics,
        log_tail="loading\nstep",
    )
    report_job(job_id=run.job_id, token=token, report=body)


def test_a_run_is_followed_live(erin: Visit, world: World) -> None:
    run = started_run(world.expert)
    page = erin.page
    page.goto(f"/w/acme/runs/{run.pk}/")
    expect(page.get_by_text("Number 1 in line").first).to_be_visible()
    token = claim_job(job_id=run.job_id, worker="worker").token
    report(run, token, range(1, 11))
    expect(page.get_by_text("10 of 30")).to_be_visible(timeout=10_000)
    expect(page.locator("[data-chart] canvas")).to_be_visible()
    expect(page.locator("[data-slot=eta]")).to_have_text("1 min 5 s")
    expect(page.locator("[data-slot=loss]")).to_have_text("0.200")
    page.reload()
    report(run, token, range(11, 13))
    expect(page.get_by_text("12 of 30")).to_be_visible(timeout=10_000)
    failure = JobFailure(fault="user", code="too_long", message="Raise max_length.")
    finish_job(job_id=run.job_id, token=token, failure=failure)
    expect(page.get_by_role("alert")).to_contain_text("Raise max_length.", timeout=10_000)
    expect(page.get_by_role("button", name="Cancel run")).to_be_hidden()
    assert erin.complaints == []


@pytest.mark.parametrize("answer", [STARTING, SORRY, b""], ids=["not found", "sorry", "silence"])
def test_a_page_that_lost_the_platform_says_so_and_finds_it_again(
    erin: Visit, world: World, front: Proxy, answer: bytes
) -> None:
    """A browser does not connect again by itself where a proxy, or an error of ours, answered once."""
    run = started_run(world.expert)
    token = claim_job(job_id=run.job_id, worker="worker").token
    report(run, token, range(1, 11))
    page = erin.page
    page.goto(f"{front.url}/w/acme/runs/{run.pk}/")
    expect(page.get_by_text("Learning, step 10.")).to_be_visible(timeout=10_000)
    with front.answering(answer):
        expect(page.locator("[data-slot=message]")).to_contain_text("No answer since", timeout=15_000)
    report(run, token, range(11, 13))
    expect(page.get_by_text("Learning, step 12.")).to_be_visible(timeout=10_000)
    expect(page.get_by_text("12 of 30")).to_be_visible()


def shown(page: Page) -> dict[str, str | None]:
    """What a run's page says, place by place, and its history."""
    names = ("state", "message", "phase", "step", "eta", "loss", "speed", "worker", "attempt")
    said = {name: page.locator(f"[data-slot={name}]").text_content() for name in names}
    return {**said, "history": page.locator("[data-timeline]").inner_text()}


def test_two_tabs_and_a_reload_say_the_same_of_a_run_that_lost_its_worker(erin: Visit, world: World) -> None:
    run = started_run(world.expert)
    early = erin.page
    early.goto(f"/w/acme/runs/{run.pk}/")
    token = claim_job(job_id=run.job_id, worker="worker").token
    report(run, token, range(1, 13))
    expect(early.get_by_text("12 of 30")).to_be_visible(timeout=10_000)
    Job.objects.filter(pk=run.job_id).update(lease_until=Now() - timedelta(seconds=1))
    reap_lost_leases()
    expect(early.locator("[data-timeline]")).to_contain_text("worker lost at step 12", timeout=10_000)
    token = claim_job(job_id=run.job_id, worker="worker").token
    expect(early.locator("[data-slot=attempt]")).to_have_text("2", timeout=10_000)
    report(run, token, range(7, 10))
    expect(early.get_by_text("9 of 30")).to_be_visible(timeout=10_000)
    expect(early.locator("[data-timeline]")).to_contain_text("resumed from step 6", timeout=10_000)
    late = erin.context.new_page()
    late.goto(f"/w/acme/runs/{run.pk}/")
    expect(late.locator("[data-chart] canvas")).to_be_visible()
    expect(late.locator("[data-slot=speed]")).to_have_text("200")
    kept = shown(early)
    assert shown(late) == kept
    assert "Attempt 2" in str(kept["history"]) and kept["loss"] == "0.222"
    early.reload()
    expect(early.locator("[data-chart] canvas")).to_be_visible()
    expect(early.locator("[data-slot=speed]")).to_have_text("200")
    assert shown(early) == kept
    assert erin.complaints == []


def test_a_run_is_cancelled_after_a_question(erin: Visit, world: World) -> None:
    run = started_run(world.expert)
    page = erin.page
    page.goto(f"/w/acme/runs/{run.pk}/")
    page.get_by_role("button", name="Cancel run").click()
    page.get_by_role("button", name="No, keep it").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.get_by_role("button", name="Cancel run").click()
    page.get_by_role("button", name="Yes, cancel it").click()
    expect(page.get_by_text("The run was cancelled.")).to_be_visible()


def test_settings_typed_by_hand_survive_another_preset(erin: Visit, world: World) -> None:
    available_base()
    data_version(world.expert)
    page = erin.page
    page.goto("/w/acme/runs/new/")
    page.get_by_text("Advanced settings").click()
    page.get_by_label("Rank of the adapter").fill("12")
    page.get_by_label("Thorough").check()
    expect(page.get_by_label("Alpha of the adapter")).to_have_attribute("placeholder", "64")
    expect(page.get_by_label("Rank of the adapter")).to_have_value("12")
    page.get_by_label("Name of the adapter").fill("letters")
    page.get_by_role("button", name="Start run").first.click()
    page.wait_for_url(re.compile(r"/runs/run_"))
    assert TrainingRun.objects.get().spec.rank == 12
