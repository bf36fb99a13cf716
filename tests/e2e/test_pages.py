"""The pages in a real browser: live parts, what survives a reload, phone width, the keyboard.

Workers are played by the actions that their calls end in; the platform with real ones is the demonstration.
"""

import os
import re
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from django.core.asgi import get_asgi_application
from django.db import connections, transaction
from django.db.models.functions import Now
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, expect

from stillhouse.approvals.actions import ask_approval, decide
from stillhouse.approvals.models import Decision
from stillhouse.datasets.actions import record_report
from stillhouse.datasets.models import DatasetVersion
from stillhouse.jobs.actions import finish_job, reap_lost_leases, report_job
from stillhouse.jobs.claiming import claim_job
from stillhouse.jobs.models import Job
from stillhouse.publishing.actions import publish
from stillhouse.training.models import TrainingRun
from tests.e2e.browser import chromium
from tests.registry import (
    another_lead,
    approved,
    available_base,
    candidate,
    data_version,
    evaluate,
    make_ready,
    started_run,
    validation_report,
)
from tests.world import PASSWORD, World, chat_row, jsonl, make_world
from workers.contract import JobFailure, MetricPoint, ReportRequest

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("stores", "transactional_db")]


@pytest.fixture
def world(transactional_db: None) -> World:
    return make_world()


@pytest.fixture
def site(transactional_db: None, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Django under uvicorn in this process: it sees the test database. Yields its address."""
    address = os.environ.get("STILLHOUSE_TEST_URL", "http://127.0.0.1:8000")
    settings.ALLOWED_HOSTS = ["127.0.0.1"]
    monkeypatch.setitem(connections.databases["default"], "CONN_MAX_AGE", 0)
    config = uvicorn.Config(
        get_asgi_application(),
        host="127.0.0.1",
        port=urlsplit(address).port or 80,
        log_level="warning",
        lifespan="off",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="site", daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.05)
    yield address
    server.should_exit = server.force_exit = True
    thread.join(timeout=10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = (
        "true"  # Playwright keeps an event loop in the thread of the test
    )
    with chromium() as found:
        yield found
    del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]


class Visit:
    """One person's browser window. What the browser complains about is kept in `complaints`."""

    def __init__(self, browser: Browser, site: str, email: str, *, width: int = 1280) -> None:
        self.context = browser.new_context(base_url=site, viewport={"width": width, "height": 860})
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto("/accounts/login/")
        self.page.get_by_label("E-mail").fill(email)
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_url("**/w/acme/")

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)


@pytest.fixture
def erin(browser: Browser, site: str, world: World) -> Iterator[Visit]:
    visit = Visit(browser, site, world.expert.user.email)
    yield visit
    visit.context.close()


@pytest.fixture
def lee(browser: Browser, site: str, world: World) -> Iterator[Visit]:
    visit = Visit(browser, site, world.lead.user.email)
    yield visit
    visit.context.close()


def claimed(job: Job) -> str:
    """A worker takes the job; returns its token."""
    return claim_job(job_id=job.pk, worker="worker").token


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


def test_a_file_is_uploaded_and_its_report_appears_by_itself(erin: Visit, tmp_path: Path) -> None:
    file = tmp_path / "letters.jsonl"
    file.write_bytes(jsonl([chat_row(f"Question {n}", "word " * 400) for n in range(9000)]))  # three parts
    page = erin.page
    page.goto("/w/acme/datasets/new/")
    page.get_by_label("Name").fill("Letters")
    page.get_by_label("File").set_input_files(file)
    page.get_by_role("button", name="Upload").click()
    page.wait_for_url("**/versions/1/", timeout=60_000)
    expect(page.get_by_text("Checking every row…")).to_be_visible()
    version = DatasetVersion.objects.get()
    assert version.size == file.stat().st_size and version.dataset.name == "Letters"
    token = claimed(version.job)
    found = validation_report(valid=9000, with_reasoning=0)

    def keep(_: Job) -> None:
        record_report(version=version, report=found)

    finish_job(job_id=version.job_id, token=token, apply=keep)
    expect(page.get_by_text("Every row can be used.")).to_be_visible(timeout=10_000)
    assert erin.complaints == []


def test_an_upload_goes_on_after_a_pause_and_a_reload(erin: Visit, tmp_path: Path) -> None:
    """No part that has arrived is sent again."""
    file = tmp_path / "letters.jsonl"
    file.write_bytes(jsonl([chat_row(f"Question {n}", "word " * 400) for n in range(16_000)]))  # five parts
    page = erin.page
    arrived: list[str] = []
    page.on(
        "requestfinished", lambda request: arrived.append(request.url) if request.method == "PUT" else None
    )
    sent: list[Route] = []
    held: list[Route] = []

    def let_two_through(route: Route) -> None:
        if route.request.method != "PUT":
            route.continue_()
        elif len(sent) < 2:
            sent.append(route)
            route.continue_()
        else:
            held.append(route)

    def choose_and_send() -> None:
        page.get_by_label("Name").fill("Letters")
        page.get_by_label("File").set_input_files(file)
        page.get_by_role("button", name="Upload", exact=True).click()

    page.route(re.compile("partNumber="), let_two_through)
    page.goto("/w/acme/datasets/new/")
    choose_and_send()
    while not (held and len(arrived) >= 2):
        page.wait_for_timeout(50)
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_text("Paused. Press Upload to go on")).to_be_visible()
    page.unroute_all(behavior="ignoreErrors")
    before = len(arrived)
    page.reload()
    page.get_by_label("File").set_input_files(file)
    expect(page.get_by_text("An upload of this file was interrupted")).to_be_visible()
    choose_and_send()
    page.wait_for_url("**/versions/1/", timeout=60_000)
    version = DatasetVersion.objects.get()
    assert version.size == file.stat().st_size and version.upload is not None
    assert version.dataset.uploads.count() == 1
    parts = [re.findall(r"partNumber=(\d+)", url)[0] for url in arrived]
    assert 2 <= before < len(parts) == len(set(parts)) <= version.upload.part_count


def test_an_upload_that_fails_says_why_and_can_be_tried_again(erin: Visit, tmp_path: Path) -> None:
    good, empty = tmp_path / "good.jsonl", tmp_path / "empty.jsonl"
    good.write_bytes(jsonl([chat_row("Question", "Answer")]))
    empty.write_bytes(b"")
    page = erin.page
    page.goto("/w/acme/datasets/new/")
    page.get_by_label("Name").fill("Letters")
    page.get_by_label("File").set_input_files(empty)
    page.get_by_role("button", name="Upload").click()
    expect(page.get_by_role("alert")).to_contain_text("The file is empty.")
    page.get_by_label("File").set_input_files(good)
    page.get_by_role("button", name="Upload").click()
    page.wait_for_url("**/versions/1/")


def test_a_run_is_followed_live(erin: Visit, world: World) -> None:
    run = started_run(world.expert)
    page = erin.page
    page.goto(f"/w/acme/runs/{run.pk}/")
    expect(page.get_by_text("Number 1 in line").first).to_be_visible()
    token = claimed(run.job)
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


def shown(page: Page) -> dict[str, str | None]:
    """What a run's page says, place by place, and its history."""
    names = ("state", "message", "phase", "step", "eta", "loss", "speed", "worker", "attempt")
    said = {name: page.locator(f"[data-slot={name}]").text_content() for name in names}
    return {**said, "history": page.locator("[data-timeline]").inner_text()}


def test_two_tabs_and_a_reload_say_the_same_of_a_run_that_lost_its_worker(erin: Visit, world: World) -> None:
    run = started_run(world.expert)
    early = erin.page
    early.goto(f"/w/acme/runs/{run.pk}/")
    token = claimed(run.job)
    report(run, token, range(1, 13))
    expect(early.get_by_text("12 of 30")).to_be_visible(timeout=10_000)
    Job.objects.filter(pk=run.job_id).update(lease_until=Now() - timedelta(seconds=1))
    reap_lost_leases()
    expect(early.locator("[data-timeline]")).to_contain_text("worker lost at step 12", timeout=10_000)
    token = claimed(run.job)
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


def test_a_lead_approves_in_the_browser(lee: Visit, world: World) -> None:
    version = candidate(world.expert)
    evaluate(version)
    ask_approval(by=world.expert, version=version)
    page = lee.page
    page.goto("/w/acme/")
    page.get_by_role("link", name="Review", exact=True).click()
    page.get_by_role("link", name=re.compile("Improved")).click()
    expect(page.get_by_label(re.compile("Question"))).to_have_count(1)
    page.get_by_label("Reason").fill("Read them all.")
    page.get_by_role("button", name="Approve").click()
    expect(page.get_by_text("Approved. It can be published")).to_be_visible()
    assert Decision.objects.get().reason == "Read them all." and lee.complaints == []


def test_a_refusal_leaves_what_was_typed(lee: Visit, world: World) -> None:
    version = candidate(world.expert)
    evaluate(version)
    ask_approval(by=world.expert, version=version)
    page = lee.page
    page.goto(f"/w/acme/versions/{version.pk}/")
    page.get_by_label("Reason").fill("A long and careful reason.")
    with transaction.atomic():
        decide(by=another_lead(world.lead), version=version, verdict="rejected", reason="Too few rows.")
    page.get_by_role("button", name="Approve").click()
    expect(page.get_by_role("alert")).to_contain_text("has been decided on already")
    expect(page.get_by_label("Reason")).to_have_value("A long and careful reason.")


def test_a_key_is_shown_until_the_page_is_left(lee: Visit) -> None:
    page = lee.page
    page.goto("/w/acme/keys/")
    page.get_by_label("Name of the app").fill("Assistant")
    page.get_by_role("button", name="Create key").click()
    expect(page.locator("#new-key")).to_have_value(re.compile("^sk-sh-"))
    page.reload()
    expect(page.get_by_text("Assistant", exact=True)).to_be_visible()
    expect(page.locator("#new-key")).to_have_count(0)
    page.get_by_role("button", name="Revoke").click()
    page.get_by_role("button", name="Yes, revoke").click()
    expect(page.get_by_text("revoked", exact=True)).to_be_visible()


def test_the_theme_survives_a_reload(erin: Visit) -> None:
    page = erin.page
    before = page.evaluate("document.documentElement.dataset.theme")
    page.get_by_role("button", name="Change between light and dark").click()
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") != before


def test_the_keyboard_reaches_the_content_first(erin: Visit) -> None:
    page = erin.page
    page.goto("/w/acme/datasets/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Upload your first dataset")).to_be_focused()


@pytest.mark.parametrize("width", [390, 1280])
def test_every_page_fits_and_is_sound(width: int, browser: Browser, site: str, world: World) -> None:
    """No sideways scrolling, one heading, labels on every field, and nothing the browser complains about."""
    version = approved(world.expert, world.lead)
    make_ready(version)
    publish(by=world.lead, alias_name="contract-clauses", version=version)
    run, data = started_run(world.expert), version.run.data
    dataset = f"datasets/{data.dataset_id}/"
    pages = [
        *("", "datasets/", "datasets/new/", dataset, f"{dataset}versions/1/", "runs/", "runs/new/"),
        *(f"runs/{run.pk}/", "adapters/", f"versions/{version.pk}/", "reviews/", "aliases/", "playground/"),
        *("keys/", "bases/", "audit/"),
    ]
    visit = Visit(browser, site, world.lead.user.email, width=width)
    for address in pages:
        visit.page.goto(f"/w/acme/{address}")
        trouble = visit.page.evaluate(SOUND)
        assert trouble == [], (address, trouble)
    assert visit.complaints == []
    visit.context.close()


SOUND = """() => {
  const trouble = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) trouble.push(`scrolls sideways: ${root.scrollWidth}`);
  const headings = document.querySelectorAll("h1").length;
  if (headings !== 1) trouble.push(`${headings} headings`);
  for (const field of document.querySelectorAll("input:not([type=hidden]), select, textarea")) {
    if (!field.labels?.length && !field.ariaLabel) trouble.push(`no label: ${field.name || field.id}`);
  }
  for (const control of document.querySelectorAll("button, a")) {
    const name = control.textContent.trim() || control.ariaLabel;
    if (!name) trouble.push(`no name: ${control.outerHTML.slice(0, 80)}`);
  }
  return trouble;
}"""
