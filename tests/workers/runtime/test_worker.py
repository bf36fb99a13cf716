"""The Celery worker as it is started in production, over the real broker."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tests.proxy import Proxy
from tests.waiting import wait_for
from tests.workers.standin import PlatformStandIn
from workers.contract import EvaluateSpec, ThinkContract, ValidateSpec

ROOT = Path(__file__).resolve().parents[3]
ROW = b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
QUEUE = "test-worker"
START_SECONDS = 60.0
"""A Celery worker takes a while to start."""


@pytest.fixture
def doorbell(stores: None) -> Iterator[Celery]:
    """The sending side, as the platform has it."""
    sender = Celery("sender", broker=os.environ["BROKER_URL"])
    yield sender
    sender.close()


@pytest.fixture
def broker(stores: None) -> Iterator[Proxy]:
    """What stands between the worker and its broker."""
    proxy = Proxy(os.environ["BROKER_URL"])
    yield proxy
    proxy.close()


@pytest.fixture
def worker(platform: PlatformStandIn, broker: Proxy, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    (tmp_path / "bases").mkdir()
    environment = {
        **os.environ,
        "BROKER_URL": broker.url,
        "STILLHOUSE_URL": platform.url,
        "WORKER_TOKEN": "worker-secret",
        "BASES_DIR": str(tmp_path / "bases"),
        "WORK_DIR": str(tmp_path / "work"),
        "WORKER_NAME": "cpu-1",
    }
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "workers.runtime.app",
        "worker",
        "--queues",
        QUEUE,
        "--pool",
        "solo",
    ]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat", "--hostname", "cpu-1@%h"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    yield process
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0


def test_a_doorbell_leads_to_a_claim_and_nonsense_is_dropped(
    platform: PlatformStandIn, worker: subprocess.Popen[bytes], doorbell: Celery
) -> None:
    platform.claimed("validate", ValidateSpec(), {"data": ROW})
    for message in ("../../etc/passwd", "", "job-1"):
        doorbell.send_task("stillhouse.run_job", args=[message], queue=QUEUE)
    wait_for(lambda: platform.finishes, START_SECONDS)
    assert platform.finishes[0]["result"]["valid"] == 1
    assert len(platform.finishes) == 1

    loaded = Path(f"/proc/{worker.pid}/maps").read_text()
    assert "torch" not in loaded, "the Celery process must stay light"


def test_a_worker_told_to_stop_hands_its_job_back_in_time(
    platform: PlatformStandIn, worker: subprocess.Popen[bytes], doorbell: Celery
) -> None:
    endless = EvaluateSpec(
        base_model="base",
        adapter_model="a@0123456789ab",
        endpoint="http://127.0.0.1:9/v1",
        api_key="",
        think=ThinkContract(family="plain"),
    )
    platform.claimed("evaluate", endless, {"data": ROW})
    doorbell.send_task("stillhouse.run_job", args=["job-1"], queue=QUEUE)
    wait_for(lambda: any(report["phase"] == "evaluating" for report in platform.reports), START_SECONDS)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=20) == 0
    assert [finish["failure"]["code"] for finish in platform.finishes] == ["worker_stopped"]


def test_a_worker_hears_again_however_often_its_broker_was_away(
    platform: PlatformStandIn, broker: Proxy, worker: subprocess.Popen[bytes], doorbell: Celery
) -> None:
    """While it waits, and then at the end of a job, when Celery acknowledges what it may."""
    wait_for(lambda: platform.hellos, START_SECONDS)
    with broker.away():
        time.sleep(0.3)
    time.sleep(5)  # it is connected again
    asked, may_end = threading.Event(), threading.Event()

    def finish(_: dict[str, Any]) -> int:
        asked.set()
        may_end.wait(START_SECONDS)
        return 200

    platform.finish = finish
    platform.claimed("validate", ValidateSpec(), {"data": ROW})
    doorbell.send_task("stillhouse.run_job", args=["job-1"], queue=QUEUE)
    assert asked.wait(START_SECONDS)
    with broker.away():
        may_end.set()
        time.sleep(0.3)
    doorbell.send_task("stillhouse.run_job", args=["job-1"], queue=QUEUE)
    wait_for(lambda: len(platform.claims) == 2, START_SECONDS)


def test_a_worker_says_what_it_is_and_a_drained_one_leaves_the_doorbells_alone(
    platform: PlatformStandIn, stores: None, worker: subprocess.Popen[bytes], doorbell: Celery
) -> None:
    platform.draining = True
    wait_for(lambda: platform.hellos, START_SECONDS)
    facts = platform.hellos[0]["facts"]
    assert (platform.hellos[0]["worker"], facts["queue"], facts["slots"]) == ("cpu-1", QUEUE, 1)
    assert facts["memory_bytes"] > 0 and facts["disk_free_bytes"] > 0 and "python" in facts["versions"]
    platform.claimed("validate", ValidateSpec(), {"data": ROW})

    def is_left_alone() -> bool:
        """Whether a doorbell stays at the broker; one that was taken too early does no harm."""
        doorbell.send_task("stillhouse.run_job", args=["job-1"], queue=QUEUE)
        time.sleep(1.0)
        with doorbell.connection_for_write() as connection:
            channel: Any = connection.default_channel
            waiting = int(channel.queue_declare(QUEUE, durable=True).message_count)
            channel.queue_purge(QUEUE)
        return waiting > 0

    wait_for(is_left_alone, START_SECONDS)


def test_a_worker_without_its_settings_says_which(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "BROKER_URL": "redis://127.0.0.1:9/0"}
    command = [sys.executable, "-m", "celery", "-A", "workers.runtime.app", "worker"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "The worker cannot start: STILLHOUSE_URL is not set" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_runtime_loads_no_torch_and_no_django() -> None:
    source = (
        "import sys, workers.runtime.job, workers.serving.agent, workers.evaluation.suite;"
        "print([name for name in ('torch', 'django', 'transformers', 'celery') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
