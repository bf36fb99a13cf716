"""The demonstration itself, end to end on the real platform, with a browser where a person would use one."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from stillhouse.embedded.demo import ALIAS, Demonstration, Numbers, example_messages, read_environment
from stillhouse.embedded.hands import DemoError, HttpHands, option, wait_for
from stillhouse.embedded.home import BASE_ID, REPOSITORY, Home, port_is_free
from stillhouse.embedded.people import EXPERT, LEAD, OUTSIDER, password_of
from stillhouse.embedded.process import child_environment, start_time
from tests.e2e.browser import BrowserHands, chromium

pytestmark = pytest.mark.e2e
NAMES = {"postgres", "valkey", "s3", "web", "keeper", "worker-cpu", "worker-gpu", "vllm", "agent"}
UP_SECONDS = 600.0


def new_home(path: Path) -> Home:
    return Home(path=path, web_port=next(port for port in range(18000, 19000) if port_is_free(port)))


@contextmanager
def running(home: Home) -> Iterator[None]:
    """The whole embedded platform, as `make up` starts it; stopped as by Ctrl-C."""
    log = home.path / "up.log"
    settings = {"STILLHOUSE_HOME": str(home.path), "PORT": str(home.web_port)}
    with log.open("wb") as output:
        supervisor = subprocess.Popen(
            [sys.executable, "manage.py", "up"],
            cwd=REPOSITORY,
            env=child_environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + UP_SECONDS
        while b"Stillhouse is up" not in log.read_bytes():
            assert supervisor.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield
    finally:
        supervisor.send_signal(signal.SIGINT)
        code = supervisor.wait(timeout=120)
    assert code == 0, log.read_text()
    assert not (home.path / "processes.json").exists()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = new_home(tmp_path_factory.mktemp("platform"))
    with running(home):
        yield home


def manage(home: Home, *arguments: object) -> Any:
    """What a command of manage.py says, as an operator runs it beside that platform."""
    done = subprocess.run(
        [sys.executable, "manage.py", *map(str, arguments)],
        cwd=REPOSITORY,
        env=child_environment({"STILLHOUSE_HOME": str(home.path)}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def demonstrated(home: Home) -> Iterator[tuple[Demonstration, Numbers, list[str]]]:
    """The main job done once, with the browser's complaints."""
    with chromium() as browser:
        hands = BrowserHands(home.url, browser)
        demonstration = Demonstration(home, hands)
        numbers = demonstration.run()
        yield demonstration, numbers, hands.complaints


def test_the_adapter_beats_its_base(demonstrated: tuple[Demonstration, Numbers, list[str]]) -> None:
    _, numbers, complaints = demonstrated
    assert numbers.rows == 36
    assert numbers.adapter_exact > numbers.base_exact
    assert numbers.steps == 30
    assert numbers.publish_to_first_token_ms > 0
    assert 0 < numbers.peak_memory_mb < 8 * 1024
    assert complaints == []


def test_its_files(home: Home, demonstrated: tuple[Demonstration, Numbers, list[str]]) -> None:
    report = json.loads((home.path / "demo.json").read_text())
    assert report["worked"] is True
    assert report["adapter_exact"] == demonstrated[1].adapter_exact
    assert stat.S_IMODE((home.path / "demo.env").stat().st_mode) == 0o600
    environment = read_environment(home)
    assert environment["STILLHOUSE_URL"] == home.url
    assert environment["OPENAI_BASE_URL"] == f"{home.url}/v1"
    assert environment["STILLHOUSE_MODEL"] == ALIAS
    assert environment["STILLHOUSE_BASE_MODEL"] == BASE_ID
    for person in ("EXPERT", "LEAD", "OUTSIDER"):
        assert environment[f"STILLHOUSE_{person}_EMAIL"]
        assert environment[f"STILLHOUSE_{person}_PASSWORD"]


def test_processes_are_named(home: Home) -> None:
    running = json.loads((home.path / "processes.json").read_text())
    assert set(running) == NAMES
    assert all(start_time(pid) is not None for pid in running.values())


def test_an_app_calls_it_with_the_official_package(
    demonstrated: tuple[Demonstration, Numbers, list[str]], home: Home
) -> None:
    environment = read_environment(home)
    client = openai.OpenAI(
        base_url=environment["OPENAI_BASE_URL"], api_key=environment["OPENAI_API_KEY"], max_retries=0
    )
    assert {ALIAS, BASE_ID} <= {model.id for model in client.models.list()}
    answer = client.chat.completions.create(
        model=ALIAS, messages=example_messages(), max_tokens=128, temperature=0
    )
    assert json.loads(answer.choices[0].message.content or "")["clause"]
    assert "<think>" not in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody-published-this", messages=example_messages())
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-sh-wrong").models.list()


def test_an_outsider_sees_nothing(home: Home, demonstrated: tuple[Demonstration, Numbers, list[str]]) -> None:
    outsider = HttpHands(home.url).sign_in(OUTSIDER, password_of(home, OUTSIDER))
    for page in ("", "datasets/", "runs/", "reviews/", "keys/", "playground/"):
        assert outsider.http.get(f"/w/acme/{page}").status_code == 404
    assert option(outsider.page(outsider.path("runs/new/")), "data", "Contract clauses") is None


def test_nobody_approves_their_own_work(
    home: Home, demonstrated: tuple[Demonstration, Numbers, list[str]]
) -> None:
    """The lead may decide, but not on what the lead asked for: the page says so, and nothing changes."""
    lead = HttpHands(home.url).sign_in(LEAD, password_of(home, LEAD))
    expert = HttpHands(home.url).sign_in(EXPERT, password_of(home, EXPERT))
    version = manage(home, "versions", "--as", EXPERT.email)[0]
    path = f"versions/{version['id']}/"
    with pytest.raises(DemoError, match=r"40[39]"):
        expert.submit(expert.path(f"{path}decide/"), {"verdict": "approved", "reason": "Mine."})
    with pytest.raises(DemoError, match=r"4\d\d"):
        lead.submit(lead.path(f"{path}decide/"), {"verdict": "rejected", "reason": "Twice."})


def test_a_second_supervisor_is_refused(home: Home) -> None:
    again = subprocess.run(
        [sys.executable, "manage.py", "up"],
        cwd=REPOSITORY,
        env=child_environment({"STILLHOUSE_HOME": str(home.path), "PORT": "18999"}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert again.returncode == 1
    assert "already running" in again.stderr
    assert "Traceback" not in again.stderr
    assert httpx.get(f"{home.url}/health", timeout=10).status_code == 200


def test_manage_works_beside_it_with_nothing_exported(home: Home) -> None:
    """Without DATABASE_URL in the environment, by the home alone."""
    assert "DATABASE_URL" not in child_environment({})
    assert BASE_ID in [base["id"] for base in manage(home, "base", "list")]


def test_the_password_files_are_private(home: Home) -> None:
    for name in ("secrets.json", "people.json", "platform.env", "processes.json"):
        mode = stat.S_IMODE((home.path / name).stat().st_mode)
        assert mode == 0o600, name
    assert os.access(home.path / "logs" / "web.log", os.R_OK)


def test_a_script_fine_tunes_with_the_official_package(home: Home) -> None:
    """Late: what it makes is evaluated afterwards, by the engine that the other tests ask."""
    lead = HttpHands(home.url).sign_in(LEAD, password_of(home, LEAD))
    lead.page(lead.path("keys/"))
    made = lead.http.post(
        lead.path("keys/"),
        data={"name": "Pipeline", "scopes": "training"},
        headers={
            "X-CSRFToken": lead.http.cookies["csrftoken"],
            "Referer": home.url,
            "Accept": "application/json",
        },
    )
    client = openai.OpenAI(base_url=f"{home.url}/v1", api_key=made.json()["secret"])
    rows = (REPOSITORY / "examples" / "contracts" / "train.jsonl").read_bytes().splitlines(keepends=True)
    file = client.files.create(file=("script.jsonl", b"".join(rows[:24])), purpose="fine-tune")
    assert client.files.wait_for_processing(file.id, poll_interval=0.5).status == "processed"
    settings = {"stillhouse": {"preset": "quick", "settings": {"max_steps": 2, "batch_size": 4}}}
    jobs = client.fine_tuning.jobs
    job = jobs.create(model=BASE_ID, training_file=file.id, suffix="script-run", extra_body=settings)
    deadline = time.monotonic() + 300
    while job.status in ("queued", "running") and time.monotonic() < deadline:
        time.sleep(1)
        job = jobs.retrieve(job.id)
    assert job.status == "succeeded", job
    assert (job.fine_tuned_model or "").startswith("script-run@")
    losses = [event for event in jobs.list_events(job.id) if event.type == "metrics"]
    assert len(losses) == 2
    assert (job.model_extra or {})["stillhouse"]["version_state"] == "candidate"


def answer(home: Home, key: str) -> tuple[str, str]:
    """The version that the alias answers with and what it says; empty while it does not."""
    client = openai.OpenAI(base_url=f"{home.url}/v1", api_key=key, max_retries=0)
    try:
        said = client.chat.completions.with_raw_response.create(
            model=ALIAS, messages=example_messages(), max_tokens=48, temperature=0
        )
    except openai.APIError:
        return "", ""
    return said.headers["x-stillhouse-version"], said.parse().choices[0].message.content or ""


def test_a_backup_in_an_empty_home_answers_by_the_same_alias(
    home: Home, demonstrated: tuple[Demonstration, Numbers, list[str]], tmp_path: Path
) -> None:
    """Last: it stops the first platform, for two engines are too much for a small machine. The second one has
    the first one's secrets, as the operator keeps them, and the base, which is in no backup."""
    key = read_environment(home)["OPENAI_API_KEY"]
    before = answer(home, key)
    assert before[0] == demonstrated[1].version
    made = manage(home, "backup", "--out", tmp_path / "backup")
    os.kill(int((home.path / "up.lock").read_text()), signal.SIGINT)
    running_now = home.path / "processes.json"
    wait_for("The first one's end", running_now.exists, lambda runs: not runs, seconds=120)

    there = new_home(tmp_path / "there")
    there.base.parent.mkdir(parents=True)
    for name in ("secrets.json", "people.json"):
        shutil.copy(home.path / name, there.path / name)
    shutil.copytree(home.base, there.base, copy_function=os.link)
    with running(there):
        assert answer(there, key) == ("", ""), "it knows nothing yet"
        restored = manage(there, "restore", "--from", tmp_path / "backup", "--replace")
        assert restored["objects"] == made["objects"]
        manage(there, "base", "add", there.base)
        assert wait_for("The alias", lambda: answer(there, key), any, seconds=300) == before
        assert manage(there, "audit", "verify")
        expert = HttpHands(there.url).sign_in(EXPERT, password_of(there, EXPERT))
        assert "succeeded" in expert.page(expert.path("runs/"))
