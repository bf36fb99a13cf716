"""The demonstration's hands in Chromium: what a person clicks, and what they see then."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, expect, sync_playwright

from stillhouse.embedded.hands import HttpHands, Visitor
from stillhouse.embedded.people import Person

FLAGS = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
SLOW = 60_000
"""Milliseconds that an engine on two cores may take."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium where there is one, else Playwright's own."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def sign_in(page: Page, email: str, password: str, workspace: str) -> None:
    page.goto("/accounts/login/")
    page.get_by_label("E-mail").fill(email)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"**/w/{workspace}/")


class BrowserHands(HttpHands):
    """Signs in, uploads, decides and chats on the pages, in one browser window a person. What else a person
    does goes over HTTP with that window's cookies."""

    def __init__(self, url: str, browser: Browser) -> None:
        super().__init__(url)
        self._browser = browser
        self._pages: dict[str, Page] = {}
        self.complaints: list[str] = []
        """What went wrong in the pages' JavaScript."""

    def sign_in(self, person: Person, password: str) -> Visitor:
        context = self._browser.new_context(base_url=self.url)
        page = self._pages[person.email] = context.new_page()
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        sign_in(page, person.email, password, person.workspace)
        visitor = Visitor(self.url, person)
        for cookie in context.cookies():
            visitor.http.cookies.set(cookie["name"], cookie["value"], domain=cookie["domain"])
        return visitor

    def upload(self, visitor: Visitor, name: str, file: Path) -> str:
        page = self._pages[visitor.person.email]
        page.goto(visitor.path("datasets/new/"))
        page.get_by_label("Name").fill(name)
        page.get_by_label("File").set_input_files(file)
        page.get_by_role("button", name="Upload").click()
        page.wait_for_url(re.compile(r"/versions/1/"))
        return urlsplit(page.url).path

    def decide(self, visitor: Visitor, version: str, verdict: str, reason: str) -> None:
        page = self._pages[visitor.person.email]
        page.goto(visitor.path(f"versions/{version}/"))
        page.get_by_label("Reason").fill(reason)
        page.get_by_role("button", name="Approve" if verdict == "approved" else "Reject").click()
        expect(page.get_by_text(f"{visitor.person.name} {verdict} it")).to_be_visible()

    def ask(self, visitor: Visitor, model: str, prompt: str, instructions: str) -> str:
        page = self._pages[visitor.person.email]
        page.goto(visitor.path(f"playground/?model={model}"))
        expect(page.get_by_label("Instructions")).to_have_value(instructions)
        page.get_by_label("Your message").fill(prompt)
        page.get_by_role("button", name="Send").click()
        answer = page.locator("[data-answers] [data-text]").first
        expect(answer).to_have_text(re.compile(r"\S"), timeout=SLOW)
        expect(page.get_by_role("button", name="Send")).to_be_enabled(timeout=SLOW)
        return answer.inner_text()
