"""What a person does on the pages, over HTTP: sign in, upload, decide, ask. No API key, no short cut.

`tests/e2e` puts a browser in place of the four gestures of `Hands`; the demonstration stays the same.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from html import unescape
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx

from stillhouse.embedded.people import Person

T = TypeVar("T")
REQUEST_SECONDS = 30.0
ANSWER_SECONDS = 300.0
"""A model's whole answer on two cores that other programs use as well."""


class DemoError(Exception):
    """A step of the demonstration did not work; the sentence says which and what the platform answered."""


class Visitor:
    """One signed-in person: cookies, forms with their CSRF token, JSON answers."""

    def __init__(self, url: str, person: Person) -> None:
        self.person = person
        self.http = httpx.Client(base_url=url, timeout=REQUEST_SECONDS, trust_env=False)

    def path(self, rest: str) -> str:
        """A page of the person's workspace: `path("runs/")`."""
        return f"/w/{self.person.workspace}/{rest}"

    def page(self, path: str) -> str:
        """The HTML of a page."""
        return checked(self.http.get(path)).text

    def json(self, path: str) -> Any:
        """What a page answers to a program."""
        return checked(self.http.get(path, headers={"Accept": "application/json"})).json()

    def submit(self, path: str, fields: Mapping[str, str]) -> str:
        """Send a form; return the address of the page it leads to."""
        answer = self.http.post(path, data=dict(fields), headers=self._csrf())
        if answer.status_code != 302:
            checked(answer)
            raise DemoError(f"The form at {path} was not accepted (it answered {answer.status_code}).")
        return answer.headers["location"]

    def call(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """One of the JSON calls that the pages' JavaScript makes."""
        headers = {**self._csrf(), "Accept": "application/json"}
        return checked(self.http.post(path, json=dict(body or {}), headers=headers)).json()

    def _csrf(self) -> dict[str, str]:
        return {"X-CSRFToken": self.http.cookies.get("csrftoken") or "", "Referer": str(self.http.base_url)}


class Hands(Protocol):
    """The gestures of the demonstration that a browser can make too."""

    def sign_in(self, person: Person, password: str) -> Visitor:
        """Sign in on the sign-in page."""

    def upload(self, visitor: Visitor, name: str, file: Path) -> str:
        """Make the dataset `name` from `file`; return the address of its first version's page."""

    def decide(self, visitor: Visitor, version: str, verdict: str, reason: str) -> None:
        """Approve or reject an adapter version on its page."""

    def ask(self, visitor: Visitor, model: str, prompt: str, instructions: str) -> str:
        """Ask in the playground, which brings the adapter's own instructions; return the answer's text."""


class HttpHands:
    """The gestures as the requests that a browser would send."""

    def __init__(self, url: str) -> None:
        self.url = url

    def sign_in(self, person: Person, password: str) -> Visitor:
        visitor = Visitor(self.url, person)
        visitor.page("/accounts/login/")  # sets the CSRF cookie
        visitor.submit("/accounts/login/", {"login": person.email, "password": password})
        return visitor

    def upload(self, visitor: Visitor, name: str, file: Path) -> str:
        visitor.page(visitor.path("datasets/new/"))
        form = {"name": name}
        made = checked(
            visitor.http.post(
                visitor.path("datasets/new/"),
                data=form,
                headers={"X-CSRFToken": visitor.http.cookies["csrftoken"], "Accept": "application/json"},
            )
        ).json()
        content = file.read_bytes()
        upload = visitor.call(made["uploads_url"], {"filename": file.name, "size": len(content)})
        for number in range(1, upload["parts"] + 1):
            target = visitor.call(upload["part_url"].replace("{number}", str(number)))["url"]
            part = content[(number - 1) * upload["part_size"] : number * upload["part_size"]]
            checked(httpx.put(target, content=part, timeout=ANSWER_SECONDS, trust_env=False))
        url: str = visitor.call(upload["finish_url"])["url"]
        return url

    def decide(self, visitor: Visitor, version: str, verdict: str, reason: str) -> None:
        visitor.page(visitor.path(f"versions/{version}/"))
        visitor.submit(visitor.path(f"versions/{version}/decide/"), {"verdict": verdict, "reason": reason})

    def ask(self, visitor: Visitor, model: str, prompt: str, instructions: str) -> str:
        if instructions not in unescape(visitor.page(visitor.path("playground/"))):
            raise DemoError("The playground does not bring the instructions of the adapter's data.")
        grant = visitor.call(visitor.path("playground/grant/"))["grant"]
        body = {
            "model": model,
            "messages": [{"role": "system", "content": instructions}, {"role": "user", "content": prompt}],
            "max_tokens": 128,
            "temperature": 0,
        }
        answer = httpx.post(
            f"{self.url}/v1/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {grant}"},
            timeout=REQUEST_SECONDS,
            trust_env=False,
        )
        return str(checked(answer).json()["choices"][0]["message"]["content"])


def option(page: str, select: str, label: str) -> str | None:
    """The value of the first option of the select named `select` whose text begins with `label`."""
    found = re.search(rf'<select[^>]*name="{re.escape(select)}".*?</select>', page, flags=re.DOTALL)
    for value, text in re.findall(r'<option value="([^"]+)"[^>]*>([^<]*)', found[0] if found else ""):
        if unescape(text).startswith(label):
            return str(value)
    return None


def wait_for(
    what: str, look: Callable[[], T], done: Callable[[T], bool], *, seconds: float, pause: float = 0.5
) -> T:
    """Look until it is done.

    Raises:
        DemoError: it is not done after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if done(seen):
            return seen
        if time.monotonic() > deadline:
            raise DemoError(
                f"{what} was not done after {seconds:.0f} s. Last seen: {json.dumps(seen, default=str)}"
            )
        time.sleep(pause)


def checked(answer: httpx.Response) -> httpx.Response:
    """The answer, if it is a good one; else what the platform said about it."""
    if answer.status_code < 400:
        return answer
    try:
        error = answer.json()["error"]
        said = f"{error['code']}: {error['message']} {error.get('next_step') or ''}".strip()
    except (ValueError, KeyError, TypeError):
        heading = re.search(r"<h1[^>]*>(.*?)</h1>", answer.text, flags=re.DOTALL)
        said = heading[1].strip() if heading else answer.text[:200]
    raise DemoError(
        f"{answer.request.method} {answer.request.url.path} answered {answer.status_code}: {said}"
    )
