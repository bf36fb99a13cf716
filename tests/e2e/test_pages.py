"""The pages in a real browser: decisions, keys, what survives a reload, phone width, the keyboard."""

import re

import pytest
from django.db import transaction
from playwright.sync_api import Browser, expect

from stillhouse.approvals.actions import ask_approval, decide
from stillhouse.approvals.models import Decision
from stillhouse.publishing.actions import publish
from tests.e2e.visits import Visit
from tests.registry import another_lead, approved, candidate, evaluate, make_ready, started_run
from tests.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("stores", "transactional_db")]


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
