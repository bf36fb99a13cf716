"""The main job on real input, as people do it on the pages: from an upload to an app's first token.

`manage.py demo` runs this file as a program beside the platform it started; `tests/e2e` drives the same steps
through a browser.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openai

from stillhouse.embedded.hands import ANSWER_SECONDS, DemoError, Hands, HttpHands, Visitor, option, wait_for
from stillhouse.embedded.home import BASE_ID, REPOSITORY, Home, write_private
from stillhouse.embedded.memory import MemoryWatch
from stillhouse.embedded.people import EXPERT, LEAD, PEOPLE, password_of

EXAMPLES = REPOSITORY / "examples" / "contracts"
DATASET, HELD_OUT = "Contract clauses", "Contract clauses, held out"
ADAPTER = ALIAS = "contract-clauses"
KEY_NAME = "Demonstration app"
ENDED = ("succeeded", "failed", "cancelled")
REASON = "The held-out answers are right far more often than the base's."


@dataclass
class Numbers:
    """What the demonstration measured; `demo.json`."""

    rows: int = 0
    base_exact: int = 0
    adapter_exact: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of each step of the way, in order."""
    publish_to_first_token_ms: float = 0.0
    """From the lead's click on Publish to the first token of the new version at an app."""
    steps: int = 0
    """Optimizer steps of the run."""
    final_loss: float = 0.0
    peak_memory_mb: float = 0.0
    version: str = ""
    """The immutable serving name that was published."""

    @property
    def worked(self) -> bool:
        return self.rows > 0 and self.adapter_exact > self.base_exact and self.publish_to_first_token_ms > 0


class Demonstration:
    """The steps in order. Each raises DemoError with what the platform said when it does not work."""

    def __init__(self, home: Home, hands: Hands) -> None:
        self.home = home
        self.hands = hands
        self.numbers = Numbers()

    def run(self) -> Numbers:
        with MemoryWatch(self.home) as memory:
            with self.step("sign in"):
                expert = self.hands.sign_in(EXPERT, password_of(self.home, EXPERT))
                lead = self.hands.sign_in(LEAD, password_of(self.home, LEAD))
                tell(f"{EXPERT.name} (expert) and {LEAD.name} (lead) are signed in")
            with self.step("upload and check"):
                data = self.dataset(expert, DATASET, EXAMPLES / "train.jsonl")
                held_out = self.dataset(expert, HELD_OUT, EXAMPLES / "heldout.jsonl")
            with self.step("train"):
                version = self.train(expert, data, held_out)
            with self.step("load and evaluate"):
                self.evaluate(expert, version)
            with self.step("approve"):
                self.approve(expert, lead, version)
            key = self.app_key(lead)
            with self.step("publish and first token"):
                self.publish(lead, version, key)
            with self.step("chat"):
                self.chat(expert, key)
        self.numbers.peak_memory_mb = memory.peak / 1024**2
        self.write_environment(key)
        write_private(self.home.path / "demo.json", json.dumps(self.report(), indent=1))
        return self.numbers

    def dataset(self, expert: Visitor, name: str, file: Path) -> str:
        """The id of a checked dataset version made of `file`; an earlier demonstration's serves too."""
        there = option(expert.page(expert.path("runs/new/")), "data", f"{name} v")
        if there is not None:
            tell(f"{name!r} is there already")
            return there
        url = self.hands.upload(expert, name, file)
        checked = wait_for(
            f"The check of {file.name}",
            lambda: expert.json(url),
            lambda seen: seen["state"] not in ("queued", "running"),
            seconds=180,
        )
        if not checked["ready"]:
            raise DemoError(f"The check of {file.name} ended {checked['state']}: {checked['failure']}")
        report = checked["report"]
        tell(f"{name!r} v{checked['number']}: {report['valid']} of {report['rows']} rows usable")
        return str(checked["id"])

    def train(self, expert: Visitor, data: str, held_out: str) -> str:
        """Start a balanced run and follow it; return the id of the adapter version it made."""
        form = {
            "adapter_name": ADAPTER,
            "base": BASE_ID,
            "data": data,
            "eval_data": held_out,
            "preset": "balanced",
        }
        url = expert.submit(expert.path("runs/new/"), form)
        follow = RunTeller()

        def look() -> Any:
            seen = expert.json(url)
            follow(seen)
            return seen

        ended = wait_for("The run", look, lambda seen: seen["state"] in ENDED, seconds=1800)
        if ended["state"] != "succeeded":
            raise DemoError(f"The run {ended['state']}: {ended['failure']}")
        self.numbers.steps, self.numbers.final_loss = ended["step"], ended["loss"] or 0.0
        return str(ended["version"])

    def evaluate(self, expert: Visitor, version: str) -> None:
        """Wait for the evaluation of the candidate beside its base, through the engine that will serve it."""
        url = expert.path(f"versions/{version}/")
        told = [False]

        def look() -> Any:
            seen = expert.json(url)
            if seen["ready"] and not told[0]:
                told[0] = True
                tell(f"{seen['serving_name']} is loaded, and proven to be the adapter that was trained")
            return seen

        seen = wait_for(
            "The evaluation",
            look,
            lambda seen: bool(seen["evaluation"]) and seen["evaluation"]["state"] in ENDED,
            seconds=1200,
        )
        result = seen["evaluation"]
        if result["state"] != "succeeded":
            raise DemoError(f"The evaluation {result['state']}: {result['failure']}")
        self.numbers.version = seen["serving_name"]
        rows, base, adapter = result["rows"], result["base_exact"], result["adapter_exact"]
        self.numbers.rows, self.numbers.base_exact, self.numbers.adapter_exact = rows, base, adapter
        tell(f"exactly right on {rows} unseen rows: base {base}, adapter {adapter}")

    def approve(self, expert: Visitor, lead: Visitor, version: str) -> None:
        """The expert asks, the lead decides; nobody approves their own work."""
        expert.submit(expert.path(f"versions/{version}/ask/"), {"note": "For the contracts desk."})
        self.hands.decide(lead, version, "approved", REASON)
        if lead.json(lead.path(f"versions/{version}/"))["approval"] != "approved":
            raise DemoError("The version is not approved after the lead approved it.")
        tell(f"{EXPERT.name} asked, {LEAD.name} approved")

    def app_key(self, lead: Visitor) -> str:
        """A key for an app; the one of an earlier demonstration while it still works."""
        known = read_environment(self.home).get("OPENAI_API_KEY", "")
        if known:
            try:
                app(self.home, known).models.list()
            except openai.AuthenticationError:
                pass
            else:
                return known
        made = _key_of(lead)
        tell(f"{LEAD.name} made the key {made[:14]}... for an app")
        return made

    def publish(self, lead: Visitor, version: str, key: str) -> None:
        """Publish, and stream from the alias at once; measures the time to the new version's first token."""
        client = app(self.home, key)
        clicked = time.monotonic()
        lead.submit(lead.path(f"versions/{version}/publish/"), {"alias": ALIAS})
        first = wait_for(
            "The first token of the published version",
            lambda: first_token(client, self.numbers.version),
            bool,
            seconds=30,
            pause=0.02,
        )
        milliseconds = (time.monotonic() - clicked) * 1000
        self.numbers.publish_to_first_token_ms = round(milliseconds, 1)
        tell(f"published as {ALIAS!r}; first token {first!r} after {milliseconds:.0f} ms")

    def chat(self, expert: Visitor, key: str) -> None:
        """The alias answers the official package, streamed and whole, and the expert in the playground."""
        client, messages = app(self.home, key), example_messages()
        whole = client.chat.completions.create(model=ALIAS, messages=messages, max_tokens=128, temperature=0)
        streamed = "".join(
            chunk.choices[0].delta.content or ""
            for chunk in client.chat.completions.create(
                model=ALIAS, messages=messages, max_tokens=128, temperature=0, stream=True
            )
            if chunk.choices
        )
        answer = whole.choices[0].message.content or ""
        if not answer.strip() or answer.strip() != streamed.strip():
            raise DemoError(f"The streamed answer {streamed!r} is not the whole one {answer!r}.")
        tell(f"an app asks:   {messages[-1]['content']}")
        tell(f"and reads:     {answer.strip()}")
        instructions, question = (message["content"] for message in messages)
        asked = self.hands.ask(expert, ALIAS, question, instructions)
        if not asked.strip():
            raise DemoError("The playground showed no answer.")

    def report(self) -> dict[str, Any]:
        """The content of `demo.json`."""
        return {
            **vars(self.numbers),
            "worked": self.numbers.worked,
            "alias": ALIAS,
            "base": BASE_ID,
            "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
            "date": datetime.now(UTC).date().isoformat(),
        }

    def write_environment(self, key: str) -> None:
        """Write `demo.env`: what an app and the three people need."""
        values = {
            "STILLHOUSE_URL": self.home.url,
            "OPENAI_BASE_URL": f"{self.home.url}/v1",
            "OPENAI_API_KEY": key,
            "STILLHOUSE_MODEL": ALIAS,
            "STILLHOUSE_BASE_MODEL": BASE_ID,
        }
        for person in PEOPLE:
            values[f"STILLHOUSE_{person.key.upper()}_EMAIL"] = person.email
            values[f"STILLHOUSE_{person.key.upper()}_PASSWORD"] = password_of(self.home, person)
        lines = [f"{name}={value}" for name, value in values.items()]
        write_private(self.home.path / "demo.env", "\n".join(lines) + "\n")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Announce a step and remember how long it took."""
        print(f"\n== {name}", flush=True)
        began = time.monotonic()
        yield
        self.numbers.seconds[name] = round(time.monotonic() - began, 1)


class RunTeller:
    """Tells what a run does, a line now and then: each phase, and every third step with its loss."""

    def __init__(self) -> None:
        self._phase = ""
        self._step = 0

    def __call__(self, seen: Any) -> None:
        step, total = seen["step"] or 0, seen["total_steps"]
        if step != self._step and (step % 3 == 0 or step == total):
            self._step = step
            loss = f"  loss {seen['loss']:.3f}" if seen["loss"] is not None else ""
            rest = f", about {seen['eta_seconds']:.0f} s to go" if seen["eta_seconds"] else ""
            tell(f"step {step:3d} of {total}{loss}{rest}")
        if seen["phase"] != self._phase and seen["phase"]:
            self._phase = seen["phase"]
            tell(f"{seen['phase']} ..." if not seen["message"] else f"{seen['phase']}: {seen['message']}")


def tell(line: str) -> None:
    """One line of progress."""
    print(f"   {line}", flush=True)


def app(home: Home, key: str) -> openai.OpenAI:
    """An app: nothing but the official package, a base URL and a key."""
    return openai.OpenAI(base_url=f"{home.url}/v1", api_key=key, timeout=ANSWER_SECONDS, max_retries=0)


def first_token(client: openai.OpenAI, version: str) -> str:
    """The first piece of text that the alias answers with; empty while that is not yet `version`'s."""
    try:
        with client.chat.completions.with_streaming_response.create(
            model=ALIAS, messages=example_messages(), max_tokens=8, temperature=0, stream=True
        ) as answer:
            if answer.headers.get("x-stillhouse-version") != version:
                return ""
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    delta = json.loads(line[6:])["choices"][0]["delta"]
                    if text := delta.get("content") or delta.get("reasoning"):
                        return str(text)
    except (openai.NotFoundError, openai.PermissionDeniedError):
        pass  # the gateway does not know of the publication yet
    return ""


def example_messages() -> list[Any]:
    """The first held-out row without its answer."""
    with (EXAMPLES / "heldout.jsonl").open(encoding="utf-8") as file:
        messages: list[Any] = json.loads(file.readline())["messages"]
    return messages[:-1]


def read_environment(home: Home) -> dict[str, str]:
    """The variables of an earlier `demo.env`."""
    try:
        lines = (home.path / "demo.env").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _key_of(lead: Visitor) -> str:
    headers = {"X-CSRFToken": lead.http.cookies["csrftoken"], "Accept": "application/json"}
    answer = lead.http.post(lead.path("keys/"), data={"name": KEY_NAME}, headers=headers)
    if answer.status_code != 201:
        raise DemoError(f"No key was made: {answer.text[:300]}")
    secret: str = answer.json()["secret"]
    return secret


def table(numbers: Numbers) -> str:
    """The closing table."""
    base, adapter = f"{numbers.base_exact}/{numbers.rows}", f"{numbers.adapter_exact}/{numbers.rows}"
    rows = [
        ("base, exactly right", base),
        (f"{numbers.version}, exactly right", adapter),
        *((f"{name}, seconds", f"{seconds:.1f}") for name, seconds in numbers.seconds.items()),
        ("publish to first token, ms", f"{numbers.publish_to_first_token_ms:.0f}"),
        ("whole platform, most memory, MB", f"{numbers.peak_memory_mb:.0f}"),
    ]
    width = max(len(label) for label, _ in rows)
    line = "-" * (width + 14)
    return "\n".join(["", line, *(f"{label:{width}}  {value:>12}" for label, value in rows), line])


def main() -> int:
    home = Home.from_environment()
    try:
        numbers = Demonstration(home, HttpHands(home.url)).run()
    except (DemoError, httpx.TransportError, openai.APIConnectionError) as error:
        said = error if isinstance(error, DemoError) else f"the platform did not answer ({error})"
        print(f"\nThe demonstration stopped: {said}\nLogs: {home.logs}", file=sys.stderr, flush=True)
        return 1
    print(table(numbers), flush=True)
    if not numbers.worked:
        print("The adapter did not beat its base.", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
