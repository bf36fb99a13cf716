"""The platform's real processes over the tests' servers, behind proxies that can take each server away."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import httpx
from django.conf import settings
from django.db import connection, connections
from django.db.backends.postgresql.base import DatabaseWrapper
from django.test import Client
from django.utils import timezone

from stillhouse.accounts.models import Workspace
from stillhouse.adapters.models import AdapterVersion
from stillhouse.audit.queries import verify_chain
from stillhouse.catalog.models import BaseModel
from stillhouse.datasets.actions import record_report
from stillhouse.datasets.models import DatasetVersion
from stillhouse.embedded.home import reserve_port
from stillhouse.jobs.models import Attempt, Checkpoint, Job, Outbox
from stillhouse.training.actions import start_run
from stillhouse.training.models import TrainingRun
from tests.chaos.traces import check_objects, content
from tests.proxy import Proxy
from tests.registry import DEMO_BASE, available_base, validation_report
from tests.stores import Stores
from tests.waiting import wait_for
from tests.workers.training.tiny import make_base
from tests.world import World, chat_row
from workers.training.base import base_facts, open_base

ROOT = Path(__file__).resolve().parents[2]
LEASE_SECONDS = 20
"""A worker stops itself when it could not report for three quarters of this: long enough to get a turn on a
machine with ten times as much to do as it has cores."""
HANG_SECONDS = 60
"""A trainer needs up to half of this to begin on a busy machine."""
PATIENCE = 900.0
"""Of a machine with much else to do: the longest run is one of 3,000 steps."""
NAMES = ("web", "keeper", "gpu-1", "gpu-2")


@dataclass(frozen=True)
class Figures:
    """What one fault cost a run, as the database tells it."""

    attempts: int
    noticed: float | None
    """Seconds from the fault to the end of the attempt that it hit; None when no attempt ended of it."""
    lost_steps: int | None
    """Steps done and reported, and done again."""
    seconds: float
    """From the fault to the end of the run."""
    duplicates: int
    """Adapter versions and winning attempts beyond one."""
    losses: int
    """Runs that did not end as they should."""


@dataclass
class House:
    """web, keeper and two workers of one queue; `ensure` starts whatever does not run."""

    folder: Path
    servers: Stores | None = None
    """Postgres, broker and store behind the proxies, where they are the session's own."""
    port: int = field(default_factory=reserve_port)
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    different: dict[str, str] = field(default_factory=dict)
    """Environment of the processes that start from now on, for one test."""
    sources: dict[str, Path] = field(default_factory=dict)
    """Code of another age that a process starts with from now on, for one test."""
    figures: list["Figures"] = field(default_factory=list)
    """Of this test's runs."""
    _hit_at: datetime | None = None
    _before: set[str] = field(default_factory=set)
    """Objects of tests before this one, whose database is gone."""

    def __post_init__(self) -> None:
        self.database = Proxy(settings.DATABASE_URL)
        self.broker = Proxy(settings.BROKER_URL)
        self.store = Proxy(settings.S3_ENDPOINT)
        self.front = Proxy(self.url)
        """What workers take for the platform."""
        self.queue = f"chaos-{self.port}"
        self.base = make_base(self.folder / "bases" / DEMO_BASE)
        self.facts = base_facts(open_base(self.base))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # processes ----------------------------------------------------------------------------------------------

    def ensure(self, *names: str) -> None:
        for name in names or NAMES:
            if name not in self.processes or self.processes[name].poll() is not None:
                self._spawn(name)
        wait_for(self._web_answers, PATIENCE)

    def hit(self) -> None:
        """Now: the figures count from here."""
        self._hit_at = self._hit_at or timezone.now()

    def hit_now(self) -> None:
        """Count from here, whatever came before."""
        self._hit_at = timezone.now()

    def kill(self, *names: str, number: signal.Signals = signal.SIGKILL) -> None:
        self.hit()
        for name in names:
            self.processes[name].send_signal(number)
            if number == signal.SIGKILL:
                self.processes[name].wait(10)

    def kill_trainers(self, number: signal.Signals = signal.SIGKILL) -> None:
        self.hit()
        self._signal_trainers(number)

    @contextlib.contextmanager
    def slow_trainers(self) -> Iterator[None]:
        """Trainers that have begun work for a fifth of the time: a run outlasts a long fault, and others have
        the cores."""
        over = threading.Event()

        def pace() -> None:
            while not over.wait(0.2):
                self._signal_trainers(signal.SIGSTOP)
                over.wait(0.8)
                self._signal_trainers(signal.SIGCONT)

        pacing = threading.Thread(target=pace)
        pacing.start()
        try:
            yield
        finally:
            over.set()
            pacing.join()

    def _signal_trainers(self, number: signal.Signals) -> None:
        for child in self.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)

    def cut_power(self) -> None:
        """`kill -9` to everything there is: processes, trainers, Postgres, broker and store."""
        assert self.servers is not None
        self.hit()
        for name in self.processes:
            self.processes[name].kill()
        self.servers.cut_power()
        for process in self.processes.values():
            process.wait(10)
        wait_for(lambda: not self.children(), 10)

    def power_again(self) -> None:
        """What `make up` does over the same home, and a supervisor for what ended by itself."""
        assert self.servers is not None
        for each in connections.all():
            each.close()
            cast(DatabaseWrapper, each).close_pool()
        self.servers.start_again()
        self.ensure()

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait(10)
        for proxy in (self.database, self.broker, self.store, self.front):
            proxy.close()

    def _spawn(self, name: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, *self._command(name)],
                cwd=self.sources.get(name, ROOT),
                env={**os.environ, **self._environment(name)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _command(self, name: str) -> list[str]:
        if name == "web":
            served = ["stillhouse.asgi:application", "--app-dir", "platform", "--lifespan", "off"]
            return ["-m", "uvicorn", *served, "--host", "127.0.0.1", "--port", str(self.port)]
        if name.startswith("keeper"):
            return ["manage.py", "keeper"]
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--hostname", f"{name}@%h"]
        app = ["-m", "celery", "-A", "workers.runtime.app", "worker", "--queues", self.queue]
        return [*app, "--pool", "solo", "--loglevel", "INFO", *quiet]

    def _environment(self, name: str) -> dict[str, str]:
        shared = {
            "STILLHOUSE_URL": self.url,
            "BROKER_URL": self.broker.url,
            "WORKER_TOKEN": settings.WORKER_TOKEN,
            "OMP_NUM_THREADS": "1",
        }
        if name.startswith("gpu"):
            bases, work = str(self.folder / "bases"), str(self.folder / name)
            own = {"BASES_DIR": bases, "WORK_DIR": work, "WORKER_NAME": name}
            own["STILLHOUSE_URL"] = self.front.url
            return {**shared, **own, **self.different}
        return {
            **shared,
            "DATABASE_URL": f"{self.database.url.rpartition('/')[0]}/{connection.settings_dict['NAME']}",
            "S3_ENDPOINT": self.store.url,
            "LEASE_SECONDS": str(LEASE_SECONDS),
            "REPORT_SECONDS": "0.3",
            "RETRY_SECONDS": "0.5",
            "CHECKPOINT_SECONDS": "1",
            "HANG_SECONDS": str(HANG_SECONDS),
            **self.different,
        }

    def _web_answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/health", timeout=2).status_code == 200
        return False

    # runs ---------------------------------------------------------------------------------------------------

    def start_run(
        self, world: World, *, epochs: float = 60.0, rows: int = 60, data_name: str = "Clauses"
    ) -> TrainingRun:
        """A run that takes a minute or so on the tiny base, queued for this house's workers."""
        data = self.data(world, rows=rows, name=data_name)
        run = start_run(
            by=world.expert, adapter_name="chaos", base=DEMO_BASE, data=data, overrides=settings_of(epochs)
        )
        return self.ours(run)

    def data(self, world: World, *, rows: int = 60, name: str = "Clauses") -> DatasetVersion:
        """Checked rows, and the base in the catalog: what a run needs."""
        available_base()
        BaseModel.objects.filter(pk=DEMO_BASE).update(
            path=str(self.base),
            digest=str(self.facts["digest"]),
            template_sha256=str(self.facts["template_sha256"]),
        )
        data = world.dataset(rows=[chat_row(f"q{n}", f"a{n}") for n in range(rows)], name=name)
        record_report(version=data, report=validation_report(valid=rows, with_reasoning=0))
        return data

    def ours(self, run: TrainingRun) -> TrainingRun:
        """The run, in the queue of this house's workers."""
        Job.objects.filter(pk=run.job_id).update(queue=self.queue)
        return run

    @contextlib.contextmanager
    def posting(self, world: World, path: str, form: Mapping[str, Any]) -> Iterator[None]:
        """Somebody sends a form to the web process, in a thread, and may never get an answer."""
        session = world.client(world.expert).cookies[settings.SESSION_COOKIE_NAME].value
        csrf = "c" * 32
        sent = threading.Thread(
            target=_post,
            args=(f"{self.url}{path}", {**form, "csrfmiddlewaretoken": csrf}),
            kwargs={"cookies": {settings.SESSION_COOKIE_NAME: session, "csrftoken": csrf}},
        )
        sent.start()
        yield
        sent.join(30)

    def training(self, run: TrainingRun, *, attempt: int = 1, step: int = 1) -> Job:
        """Wait until this attempt has done a step that is kept nowhere else, at `step` or later."""

        def there() -> bool:
            job = self.job(run)
            assert not job.ended, (job.state, job.failure)
            return (
                job.attempt >= attempt and job.state == "running" and job.step > max(step, job.resumed_step)
            )

        wait_for(there, PATIENCE)
        return self.job(run)

    def checkpointed(self, run: TrainingRun) -> int:
        """Wait for a stored checkpoint; returns its step."""
        wait_for(lambda: Checkpoint.objects.filter(job=run.job_id).exists(), PATIENCE)
        return Checkpoint.objects.filter(job=run.job_id).latest("step").step

    def job(self, run: TrainingRun) -> Job:
        return Job.objects.get(pk=run.job_id)

    def ended(self, run: TrainingRun) -> Job:
        wait_for(lambda: self.job(run).ended, PATIENCE)
        return self.job(run)

    def children(self) -> list[int]:
        """Pids of trainers that work in this house's folder."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                command = entry.read_bytes()
                if b"workers.runtime.child" in command and str(self.folder).encode() in command:
                    found.append(int(entry.parent.name))
        return found

    # promises -----------------------------------------------------------------------------------------------

    def check_success(self, run: TrainingRun) -> list[Attempt]:
        """After every fault: one winner, one version, nothing left over. Returns the attempts."""
        return self.check(run, "succeeded")

    def check(self, run: TrainingRun, state: str) -> list[Attempt]:
        """The same for a run that is to end in another state, without a winner and a version."""
        job = self.ended(run)
        attempts = list(Attempt.objects.filter(job=job).order_by("number"))
        wanted = 1 if state == "succeeded" else 0
        winners = sum(attempt.outcome == "succeeded" for attempt in attempts)
        versions = AdapterVersion.objects.filter(run=run).count()
        self._count(job, attempts, max(0, winners - wanted, versions - wanted), job.state != state)
        assert (job.state, winners, versions) == (state, wanted, wanted), job.failure
        self.check_nothing_left(run)
        self._check_page(run, job)
        return attempts

    def _check_page(self, run: TrainingRun, job: Job) -> None:
        """The run's page says what the database says."""
        browser = Client()
        browser.force_login(run.started_by, backend=settings.AUTHENTICATION_BACKENDS[0])
        address = f"/w/{run.workspace.slug}/runs/{run.pk}/"
        said = browser.get(address, headers={"accept": "application/json"}).json()
        assert (said["state"], bool(said["version"])) == (job.state, job.state == "succeeded"), said

    def _count(self, job: Job, attempts: list[Attempt], duplicates: int, lost: bool) -> None:
        assert self._hit_at is not None, "the test never said when its fault began"
        assert job.finished_at is not None
        hit = next((a for a in attempts[:-1] if a.ended_at and a.ended_at >= self._hit_at), None)
        again = [before.last_step - after.resumed_step for before, after in pairwise(attempts)]
        self.figures.append(
            Figures(
                attempts=len(attempts),
                noticed=_noticed(hit, self._hit_at) if hit else None,
                lost_steps=sum(max(0, steps) for steps in again) if again else None,
                seconds=(job.finished_at - self._hit_at).total_seconds(),
                duplicates=duplicates,
                losses=int(lost),
            )
        )

    def check_nothing_left(self, run: TrainingRun) -> None:
        attempts = Attempt.objects.filter(job=run.job_id)
        assert not attempts.filter(ended_at=None).exists()
        assert attempts.filter(outcome="succeeded").count() == (self.job(run).state == "succeeded")
        wait_for(lambda: not self.children(), 30)
        assert all(verify_chain(workspace) is None for workspace in Workspace.objects.all())
        check_objects(self._before)

    def clear(self) -> None:
        """Before the next test: workers forget their folders, every process runs."""
        for process in self.processes.values():  # a test that failed may have left it asleep
            process.send_signal(signal.SIGCONT)
        self.kill_trainers()
        if self.different or self.sources:
            self.different, self.sources = {}, {}
            self.kill(*self.processes)
        self._hit_at = None
        self.figures = []
        for name in ("gpu-1", "gpu-2"):
            shutil.rmtree(self.folder / name / "jobs", ignore_errors=True)
        self.ensure()
        self._before = content()


def _noticed(attempt: Attempt, since: datetime) -> float | None:
    """Seconds until the platform knew of an attempt's end: of a lost one, when it rang for the job again."""
    at = attempt.ended_at
    if attempt.outcome == "lost":
        rung = Outbox.objects.filter(job=attempt.job_id, created_at__gte=at)
        at = rung.order_by("created_at").values_list("created_at", flat=True).first()
    return (at - since).total_seconds() if at else None


def settings_of(epochs: float) -> dict[str, float]:
    """A run of many short steps with checkpoints in between."""
    return {"epochs": epochs, "batch_size": 4, "max_length": 256, "checkpoint_every": 25}


def _post(url: str, form: Mapping[str, Any], *, cookies: dict[str, str]) -> None:
    with contextlib.suppress(httpx.HTTPError):
        httpx.post(url, data=dict(form), cookies=cookies, timeout=20)
