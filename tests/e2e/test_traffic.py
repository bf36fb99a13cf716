"""From what apps asked to rows, and a comment on a row: with the keyboard, in a real browser."""

import json

import pytest
from playwright.sync_api import Browser, expect

from stillhouse.core import blobs
from stillhouse.datasets.actions import record_report
from stillhouse.datasets.models import Comment, DatasetVersion, TrafficSource
from stillhouse.publishing.actions import publish
from stillhouse.publishing.keeping import start_keeping
from tests.registry import approved, make_ready, validation_report
from tests.web.test_traffic import keep
from tests.world import PASSWORD, World

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("stores", "transactional_db")]

AS_ANSWERED = '\n\n{"type":\r\n "payment"}  <b>&amp;</b>\n'
"""Line ends, a beginning and characters that a form could change on the way there and back."""


def test_exchanges_become_rows_and_a_row_gets_a_comment(world: World, site: str, browser: Browser) -> None:
    version = approved(world.expert, world.lead)
    make_ready(version)
    alias = publish(by=world.lead, alias_name="clauses", version=version).alias
    start_keeping(by=world.lead, alias=alias, days=3)
    untouched = keep(world.lead, 1, AS_ANSWERED, reasoning="\nBecause\nof fees.\n")
    changed = keep(world.lead, 2, "wrong", reasoning="")
    context = browser.new_context(base_url=site, viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto("/accounts/login/")
    page.get_by_label("E-mail").fill(world.expert.user.email)
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url("**/w/acme/")

    page.goto("/w/acme/aliases/")
    page.get_by_role("link", name="Look through them").press("Enter")
    for request in (untouched, changed):
        page.locator(f"#take-{request}").press("Space")
    page.locator(f"#answer-{changed}").fill("right\nthis time")
    page.get_by_label("Name of the new one").press("Enter")
    expect(page.get_by_text("It is being checked now.")).to_be_visible()
    made = DatasetVersion.objects.get(dataset__name="Traffic of clauses")
    rows = [json.loads(line) for line in b"".join(blobs.read(made.sha256)).splitlines()]
    assert [row["messages"][-1]["content"] for row in rows] == [AS_ANSWERED, "right\nthis time"]
    assert rows[0]["messages"][-1]["reasoning_content"] == "\nBecause\nof fees.\n"
    assert TrafficSource.objects.get().corrected == 1

    record_report(version=made, report=validation_report(valid=2, with_reasoning=1))
    page.reload()
    expect(page.get_by_role("heading", name="Made from app traffic")).to_be_visible()
    page.get_by_label("New tag").fill("From the field")
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="from-the-field")).to_be_visible()
    page.get_by_role("link", name="Comments").press("Enter")
    page.get_by_label("Row").fill("2")
    page.get_by_role("textbox", name="Comment").fill("<i>Says</i> who?")
    page.get_by_role("button", name="Comment").press("Enter")
    expect(page.get_by_text("<i>Says</i> who?")).to_be_visible()
    page.get_by_role("button", name="Delete your comment on row 2").press("Enter")
    expect(page.get_by_text("Your comment is deleted.")).to_be_visible()
    assert not Comment.objects.exists()
    context.close()
