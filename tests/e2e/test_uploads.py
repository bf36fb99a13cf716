"""Uploads in a real browser: parts sent straight to the store, a pause and a reload, a file that is refused.

The worker is played by the actions that its calls end in; the platform with real ones is the demonstration.
"""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Route, expect

from stillhouse.datasets.actions import record_report
from stillhouse.datasets.models import DatasetVersion
from stillhouse.jobs.actions import finish_job
from stillhouse.jobs.claiming import claim_job
from stillhouse.jobs.models import Job
from tests.e2e.visits import Visit
from tests.proxy import SORRY, STARTING, Proxy
from tests.registry import validation_report
from tests.world import World, chat_row, jsonl

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("stores", "transactional_db")]


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
    token = claim_job(job_id=version.job_id, worker="worker").token
    found = validation_report(valid=9000, with_reasoning=0)

    def keep(_: Job) -> None:
        record_report(version=version, report=found)

    finish_job(job_id=version.job_id, token=token, apply=keep)
    expect(page.get_by_text("Every row can be used.")).to_be_visible(timeout=10_000)
    assert erin.complaints == []


@pytest.mark.parametrize("answer", [STARTING, SORRY], ids=["not found", "sorry"])
def test_a_report_is_waited_for_while_the_platform_is_away(
    erin: Visit, world: World, front: Proxy, answer: bytes
) -> None:
    version = world.dataset(rows=[chat_row("Question", "Answer")])
    page = erin.page
    page.goto(f"{front.url}/w/acme/datasets/{version.dataset_id}/versions/{version.number}/")
    checking = page.get_by_text("Checking every row…")
    expect(checking).to_be_visible()
    with front.answering(answer):
        expect(page.get_by_role("alert")).to_contain_text("goes on by itself", timeout=10_000)
        expect(checking).to_be_visible()
    expect(page.get_by_role("alert")).to_be_hidden(timeout=10_000)
    with front.away():
        expect(page.get_by_role("alert")).to_contain_text("goes on by itself", timeout=10_000)
    record_report(version=version, report=validation_report(valid=1, with_reasoning=0))
    expect(page.get_by_text("Every row can be used.")).to_be_visible(timeout=10_000)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_page_left_open_asks_for_a_sign_in(erin: Visit, world: World) -> None:
    """Its parts ask by themselves; none of them is to become the form."""
    version = world.dataset(rows=[chat_row("Question", "Answer")])
    page = erin.page
    page.goto(f"/w/acme/datasets/{version.dataset_id}/versions/{version.number}/")
    expect(page.get_by_text("Checking every row…")).to_be_visible()
    erin.context.clear_cookies()
    page.wait_for_url(f"**/accounts/login/?next=/w/acme/datasets/{version.dataset_id}/versions/1/")
    expect(page.get_by_role("heading", level=1)).to_have_count(1)


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
