"""A person at a browser window, signed in."""

from playwright.sync_api import Browser, ConsoleMessage, Page

from tests.e2e.browser import sign_in
from tests.world import PASSWORD


class Visit:
    """One person's browser window. What the browser complains about is kept in `complaints`."""

    def __init__(self, browser: Browser, site: str, email: str, *, width: int = 1280) -> None:
        self.context = browser.new_context(base_url=site, viewport={"width": width, "height": 860})
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        sign_in(self.page, email, PASSWORD, "acme")

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)
