"""Processes under supervision: they come back, they end together, and nobody else's is touched."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse.embedded.home import REPOSITORY, EmbeddedError, Home
from stillhouse.embedded.leftovers import clear_dead_lock, end_leftovers, record
from stillhouse.embedded.process import Process, Program, start_time
from stillhouse.embedded.supervisor import Supervisor
from tests.waiting import wait_for


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(path=tmp_path / "home", web_port=8000)
    made.create()
    return made


def program(name: str, code: str, **options: object) -> Program:
    return Program(name=name, argv=[sys.executable, "-c", code], environment={}, **options)  # type: ignore[arg-type]


def process_of(home: Home, name: str, code: str, **options: object) -> Process:
    return Process(program(name, code, **options), home.logs / f"{name}.log")


def gone(pid: int) -> bool:
    return wait_for(lambda: start_time(pid) is None)


SLEEP = "import time; time.sleep(600)"
WITH_CHILD = (
    "import subprocess, sys, time; "
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    "print('child', child.pid, flush=True); time.sleep(600)"
)


async def test_a_start_that_fails_says_why(home: Home) -> None:
    process = process_of(home, "broken", "import sys; sys.exit('the disk is full')", ready_line="never")
    await process.start()
    with pytest.raises(EmbeddedError, match=r"(?s)broken ended with exit code 1 .*the disk is full"):
        await process.wait_until_ready()


async def test_a_start_that_hangs_is_given_up(home: Home) -> None:
    process = process_of(home, "deaf", SLEEP, ready_line="ready", start_timeout=0.5)
    await process.start()
    with pytest.raises(EmbeddedError, match=r"deaf did not answer within"):
        await process.wait_until_ready()
    await process.stop()


async def test_an_old_ready_line_does_not_count(home: Home) -> None:
    (home.logs / "late.log").write_text("ready\n")
    process = process_of(home, "late", "print('ready', flush=True); " + SLEEP, ready_line="ready")
    await process.start()
    assert process.log_began == len("ready\n")
    await process.wait_until_ready()
    await process.stop()


async def test_stopping_ends_the_children_too(home: Home) -> None:
    process = process_of(home, "parent", WITH_CHILD, ready_line="child")
    await process.start()
    await process.wait_until_ready()
    child = int((home.logs / "parent.log").read_text().split()[1])
    await process.stop()
    assert gone(process.pid)
    assert gone(child)


async def test_one_that_ignores_the_stop_signal_is_killed(home: Home) -> None:
    stubborn = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); " + SLEEP
    )
    process = process_of(home, "stubborn", stubborn, ready_line="up", stop_timeout=0.3)
    await process.start()
    await process.wait_until_ready()
    await process.stop()
    assert process.child is not None
    assert process.child.returncode == -signal.SIGKILL


async def test_a_killed_process_comes_back(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    supervisor = Supervisor(home)
    await supervisor.launch(program("worker", "print('up', flush=True); " + SLEEP, ready_line="up"))
    first = json.loads((home.path / "processes.json").read_text())["worker"]
    os.kill(first, signal.SIGKILL)
    for _ in range(100):
        await asyncio.sleep(0.1)
        if "worker is back" in (said := capsys.readouterr().out):
            break
    second = json.loads((home.path / "processes.json").read_text())["worker"]
    assert second != first
    assert "worker is back" in said
    await supervisor.stop()
    assert gone(second)
    assert not (home.path / "processes.json").exists()


async def test_a_process_comes_back_on_a_full_disk(tmp_path: Path) -> None:
    """Postgres ends when it cannot write its log, and the supervisor may share its disk."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a file system of its own takes the right to mount")
    home = Home(path=tmp_path / "home", web_port=8000)
    home.create()
    supervisor = Supervisor(home)
    try:
        await supervisor.launch(program("worker", SLEEP))
        with pytest.raises(OSError, match="No space"), (tmp_path / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        for _ in range(2):
            first = supervisor.processes["worker"].pid
            os.kill(first, signal.SIGKILL)
            for _ in range(100):
                await asyncio.sleep(0.1)
                if supervisor.processes["worker"].pid != first and supervisor.processes["worker"].running:
                    break
            assert supervisor.processes["worker"].pid != first
        await supervisor.stop()
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_everything_ends_with_a_killed_supervisor(tmp_path: Path) -> None:
    """PR_SET_PDEATHSIG: no Postgres and no engine is left behind by a kill -9."""
    code = f"""
import asyncio, sys
from pathlib import Path
from stillhouse.embedded.process import Process, Program
async def main():
    program = Program(name="x", argv=[sys.executable, "-c", {SLEEP!r}], environment={{}})
    process = Process(program, Path({str(tmp_path)!r}) / "x.log")
    await process.start()
    await asyncio.sleep(0.5)
    print(process.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    supervisor = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "platform")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert supervisor.stdout is not None
    pid = int(supervisor.stdout.readline())
    assert start_time(pid) is not None
    supervisor.kill()
    supervisor.wait()
    assert gone(pid)


async def test_leftovers_are_ended_and_strangers_are_not(home: Home) -> None:
    ours, strangers = process_of(home, "postgres", SLEEP), process_of(home, "web", SLEEP)
    for process in (ours, strangers):
        await process.start()
    record(home, [ours, strangers])
    run = json.loads((home.path / "run.json").read_text())
    run["processes"]["web"]["started"] -= 1  # the pid was lent to somebody else since
    (home.path / "run.json").write_text(json.dumps(run))

    assert await asyncio.to_thread(end_leftovers, home) == ["postgres"]
    assert gone(ours.pid)
    assert start_time(strangers.pid) is not None
    await strangers.stop()


def test_leftovers_of_another_boot_are_only_numbers(home: Home) -> None:
    entry = {"pid": os.getpid(), "started": start_time(os.getpid())}
    (home.path / "run.json").write_text(json.dumps({"boot": "another", "processes": {"web": entry}}))
    assert end_leftovers(home) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has powers to drop")
def test_postgres_finds_its_files_below_a_folder_of_root_alone(tmp_path: Path) -> None:
    """A checkout in /root: Postgres runs as somebody else, and asks access(2) before it opens anything."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    file = closed / "program"
    file.touch(mode=0o755)
    ask = "import os, sys; print(os.geteuid(), os.access(sys.argv[1], os.X_OK))"
    dropped = Program(
        name="x", argv=[sys.executable, "-c", ask, str(file)], environment={}, user=(65534, 65534)
    )
    said = subprocess.run(dropped.command(), stdout=subprocess.PIPE, text=True, timeout=30, check=True).stdout
    assert said.split() == ["65534", "True"]


def test_a_dead_server_that_nobody_asked_for_does_not_keep_its_lock(tmp_path: Path) -> None:
    """As after `kill -9` in a container whose first process does not ask what became of its children."""
    lock = tmp_path / "postmaster.pid"
    living = subprocess.Popen(["sleep", "60"])
    lock.write_text(f"{living.pid}\n{tmp_path}\n")
    clear_dead_lock(tmp_path, patience=0.1)
    assert lock.exists()
    living.kill()
    assert gone(living.pid)
    working = subprocess.Popen(["sleep", "60"], cwd=tmp_path)
    clear_dead_lock(tmp_path, patience=0.1)
    assert lock.exists(), "one of its processes still works there"
    working.kill()
    working.wait()
    clear_dead_lock(tmp_path, patience=0.1)
    assert not lock.exists()
    living.wait()
    clear_dead_lock(tmp_path)
