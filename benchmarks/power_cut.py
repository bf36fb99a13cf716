"""The power fails while a run trains: everything is `kill -9`ed, then `manage.py up` over the same home.

    python benchmarks/power_cut.py --home /path/to/a/home/of/make-demo [--rounds 1]

The run has to end well from its checkpoint, and the demonstration's alias to answer again with the version it
had. Ends with one JSON line.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import openai

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

from benchmarks.report import Line  # noqa: E402
from stillhouse.embedded.demo import (  # noqa: E402
    ALIAS,
    DATASET,
    HELD_OUT,
    app,
    example_messages,
    read_environment,
)
from stillhouse.embedded.hands import HttpHands, Visitor, option  # noqa: E402
from stillhouse.embedded.home import BASE_ID, Home  # noqa: E402
from stillhouse.embedded.people import EXPERT, password_of  # noqa: E402
from stillhouse.embedded.process import descendants  # noqa: E402

ENDED = ("succeeded", "failed", "cancelled")
PATIENCE = 900.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8790)
    parser.add_argument("--rounds", type=int, default=1)
    chosen = parser.parse_args()
    home = Home(path=chosen.home.resolve(), web_port=chosen.port)
    line = Line("power_cut")
    rounds = [one_round(home, number) for number in range(1, chosen.rounds + 1)]
    line.end({"rounds": rounds})


def one_round(home: Home, number: int) -> dict[str, Any]:
    """Figures of one cut, in seconds from the second start."""
    house = up(home)
    try:
        before = wait_for(lambda: answer(home), bool)
        expert = HttpHands(home.url).sign_in(EXPERT, password_of(home, EXPERT))
        run = start_run(expert)
        seen = wait_for(lambda: expert.json(run), lambda seen: (seen["step"] or 0) >= 6)
        kill_everything(house)
        began = time.monotonic()
        house = up(home)
        healthy = time.monotonic() - began
        after = wait_for(lambda: answer(home), bool)
        answered = time.monotonic() - began
        expert = HttpHands(home.url).sign_in(EXPERT, password_of(home, EXPERT))
        ended = wait_for(lambda: expert.json(run), lambda seen: seen["state"] in ENDED)
        figures = {
            "round": number,
            "cut_at_step": seen["step"],
            "platform_answers_after": round(healthy, 1),
            "alias_answers_after": round(answered, 1),
            "same_version": before == after,
            "run": ended["state"],
            "attempts": ended["attempt"],
            "run_ended_after": round(time.monotonic() - began, 1),
        }
        print(figures, flush=True)
        return figures
    finally:
        house.send_signal(signal.SIGINT)
        house.wait(60)


def up(home: Home) -> "subprocess.Popen[bytes]":
    """`manage.py up`, once it answers."""
    unset = {"DATABASE_URL", "SECRET_KEY", "STILLHOUSE_URL"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"STILLHOUSE_HOME": str(home.path), "PORT": str(home.web_port)}
    with (home.logs / "power-cut.log").open("ab") as log:
        house = subprocess.Popen(
            [sys.executable, "manage.py", "up"], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    wait_for(lambda: house.poll() is not None or health(home), bool)
    if house.poll() is not None:
        raise SystemExit(f"it did not start: see {log.name}")
    return house


def health(home: Home) -> bool:
    try:
        return httpx.get(f"{home.url}/health", timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def answer(home: Home) -> str:
    """The version that the alias answers with now; empty while it does not answer."""
    client = app(home, read_environment(home)["OPENAI_API_KEY"])
    try:
        said = client.chat.completions.create(model=ALIAS, messages=example_messages(), max_tokens=8)
    except openai.OpenAIError:
        return ""
    return said.model


def start_run(expert: Visitor) -> str:
    """A short run on the demonstration's data; the address of its page."""
    page = expert.page(expert.path("runs/new/"))
    form = {
        "adapter_name": "power-cut",
        "base": BASE_ID,
        "data": option(page, "data", f"{DATASET} v") or "",
        "eval_data": option(page, "eval_data", f"{HELD_OUT} v") or "",
        "preset": "quick",
    }
    return expert.submit(expert.path("runs/new/"), form)


def kill_everything(house: "subprocess.Popen[bytes]") -> None:
    """`kill -9` to the supervisor and all that it has ever started, at once."""
    pids = {house.pid} | descendants({house.pid})
    for pid in sorted(pids):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    house.wait(10)


def wait_for(look: Any, good: Any) -> Any:
    """What `look` finds once it is `good`; raises TimeoutError."""
    deadline = time.monotonic() + PATIENCE
    while not good(seen := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"still {seen}")
        time.sleep(1)
    return seen


if __name__ == "__main__":
    main()
