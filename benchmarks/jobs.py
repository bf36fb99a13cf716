"""A long queue: shares, the queue page, the claim, the keeper. One JSON line.

    python benchmarks/jobs.py [--jobs 1000] [--workspaces 20] [--workers 8] [--seconds 0.4]

The platform's own processes (Postgres, broker, S3 server, web, keeper) in a temporary folder, and that many
real Celery workers over the real worker API. Their trainer is a stand-in that holds its slot for so many
seconds (`benchmarks/jobs_child.py`). As short as 0.4 they fill two cores with starting Pythons, and all that
is timed waits for a core first: `cores_busy` says how full they were, and `at_work` what of a claim was work.
Shares are counted when half of the jobs have ended: at the end all have had everything. A workspace's share
is its worker seconds against the mean of all, which have the same weight.
"""

import argparse
import datetime
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

from benchmarks.report import Line  # noqa: E402

if TYPE_CHECKING:
    from stillhouse.accounts.models import Membership
    from stillhouse.embedded.home import Home
    from stillhouse.training.models import TrainingRun

IDLE_SECONDS = 20.0
PAGES = 40
PATIENCE = 1800.0
TICKS = os.sysconf("SC_CLK_TCK")


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > deadline:
            raise SystemExit("It did not happen in time; see the logs.")
        time.sleep(0.2)


def start(
    stack: ExitStack, name: str, argv: list[str], environment: dict[str, str], logs: Path
) -> "subprocess.Popen[bytes]":
    """A process that ends with this one; its output goes to a log of its own."""
    with (logs / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *argv],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    stack.callback(process.wait, 30)
    stack.callback(process.kill)
    return process


def start_worker(stack: ExitStack, home: "Home", number: int) -> None:
    name = f"gpu-{number}"
    values = home.settings()
    environment = {
        **{key: values[key] for key in ("STILLHOUSE_URL", "WORKER_TOKEN", "BROKER_URL", "BASES_DIR")},
        "WORK_DIR": str(home.path / name),
        "WORKER_NAME": name,
    }
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"]
    app = ["-m", "celery", "-A", "benchmarks.jobs_worker", "worker", "--queues", "gpu", "--pool", "solo"]
    argv = [sys.executable, *app, *quiet, "--hostname", f"{name}@%h"]
    start(stack, name, argv, environment, home.logs)


def members(count: int) -> "list[Membership]":
    """An expert in each of that many workspaces."""
    from stillhouse.accounts.actions import add_member, create_workspace  # noqa: PLC0415
    from stillhouse.accounts.models import Role, User  # noqa: PLC0415

    user = User.objects.create(email="expert@example.com", name="Erin")
    return [
        add_member(
            workspace=create_workspace(name=f"Workspace {number}", slug=f"w{number}"),
            email=user.email,
            password=None,
            name=user.name,
            role=Role.EXPERT,
        )
        for number in range(count)
    ]


def queue_runs(experts: "list[Membership]", count: int) -> "list[TrainingRun]":
    """Training runs of all workspaces; nobody rings for them before the workers run."""
    from stillhouse.core import blobs  # noqa: PLC0415
    from stillhouse.datasets.models import DatasetVersion  # noqa: PLC0415
    from stillhouse.training.actions import start_run  # noqa: PLC0415
    from tests.registry import DEMO_BASE, available_base, data_version  # noqa: PLC0415

    available_base()
    blob = blobs.put(b'{"messages": []}\n')
    data = []
    for expert in experts:
        version = data_version(expert)
        DatasetVersion.objects.filter(pk=version.pk).update(
            sha256=blob.sha256, size=blob.size, rows_sha256=blob.sha256, rows_size=blob.size
        )
        data.append(DatasetVersion.objects.get(pk=version.pk))
    return [
        start_run(
            by=experts[number % len(experts)],
            adapter_name=f"adapter-{number}",
            base=DEMO_BASE,
            data=data[number % len(experts)],
        )
        for number in range(count)
    ]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def share_of_core(pid: int, seconds: float) -> float:
    before, began = cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds(pid) - before) / (time.monotonic() - began)


def processor_times() -> tuple[int, int]:
    """Ticks of all cores since the machine started: (busy, all)."""
    fields = [int(field) for field in Path("/proc/stat").read_text(encoding="ascii").split()[1:9]]
    idle = fields[3] + fields[4]
    return sum(fields) - idle, sum(fields)


def page_times(url: str, expert: "Membership", run: "TrainingRun") -> dict[str, list[float]]:
    """Milliseconds of the list of runs and of a waiting run's page, in turns, by a member."""
    from django.conf import settings  # noqa: PLC0415
    from django.test import Client  # noqa: PLC0415

    browser = Client()
    browser.force_login(expert.user, backend=settings.AUTHENTICATION_BACKENDS[0])
    cookies = {name: morsel.value for name, morsel in browser.cookies.items()}
    paths = {"runs": f"/w/{expert.workspace.slug}/runs/"}
    paths["run"] = f"{paths['runs']}{run.pk}/"
    times: dict[str, list[float]] = {name: [] for name in paths}
    with httpx.Client(base_url=url, cookies=cookies, timeout=30) as client:
        for _ in range(PAGES):
            for name, path in paths.items():
                began = time.monotonic()
                response = client.get(path)
                times[name].append((time.monotonic() - began) * 1000)
                if response.status_code != 200:
                    raise SystemExit(f"{path} answered {response.status_code}")
    return times


def deviation(limit: int) -> dict[str, float]:
    """How far the workspaces are from their share after the first `limit` attempts, as parts of it."""
    from stillhouse.jobs.models import Attempt  # noqa: PLC0415

    counts: dict[str, int] = {}
    seconds: dict[str, float] = {}
    for row in Attempt.objects.exclude(ended_at=None).order_by("ended_at")[:limit]:
        counts[row.workspace_id] = counts.get(row.workspace_id, 0) + 1
        spent = (row.ended_at - row.started_at).total_seconds() if row.ended_at else 0.0
        seconds[row.workspace_id] = seconds.get(row.workspace_id, 0.0) + spent
    fair = statistics.mean(seconds.values())
    return {
        "workspaces_served": len(counts),
        "jobs_fewest": min(counts.values()),
        "jobs_most": max(counts.values()),
        "seconds_largest_deviation": round(max(abs(one - fair) / fair for one in seconds.values()), 4),
    }


def claims(home: "Home") -> dict[str, float]:
    lines = [
        line.split() for path in home.path.glob("gpu-*/claims") for line in path.read_text().splitlines()
    ]
    won = [float(ms) for how, ms in lines if how == "won"]
    return {"won": len(won), "refused": len(lines) - len(won), **spread(won)}


def claims_in_web(home: "Home") -> dict[str, dict[str, float]]:
    """The same claims as the web process timed them, without the way and the wait there;
    and the processor time of its thread, without its waiting for Postgres and for its turn."""
    said = (home.logs / "web.log").read_text(encoding="utf-8", errors="replace")
    found = re.findall(r"claimed in ([0-9.]+) ms, ([0-9.]+) of them at work", said)
    took, worked = zip(*((float(wall), float(processor)) for wall, processor in found), strict=True)
    return {"took": spread(list(took)), "at_work": spread(list(worked))}


def spread(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100)
    return {"p50_ms": round(cuts[49], 2), "p99_ms": round(cuts[98], 2), "most_ms": round(max(values), 2)}


def measure(stack: ExitStack, *, jobs: int, workspaces: int, workers: int, seconds: float) -> dict[str, Any]:
    from tests.stores import Stores  # noqa: PLC0415

    stores = Stores()
    home = stores.home
    os.environ.update(home.settings(), DJANGO_SETTINGS_MODULE="stillhouse.settings", LOG_LEVEL="WARNING")
    os.environ["BENCH_JOB_SECONDS"] = str(seconds)
    import django  # noqa: PLC0415

    django.setup()
    stack.callback(stores.stop)
    stores.start()
    from django.core.management import call_command  # noqa: PLC0415

    from stillhouse.core import blobs  # noqa: PLC0415
    from stillhouse.embedded import platform as programs  # noqa: PLC0415
    from stillhouse.jobs.models import ENDED, QUEUED, Attempt, Job, Worker  # noqa: PLC0415
    from tests.registry import DEMO_BASE  # noqa: PLC0415

    call_command("migrate", verbosity=0)
    blobs.ensure_bucket()
    base = home.path / "bases" / DEMO_BASE
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}", encoding="ascii")
    web, keeper = programs.web(home), programs.keeper(home)
    start(stack, "web", list(web.argv), {**web.environment, "LOG_LEVEL": "INFO"}, home.logs)
    kept = start(stack, "keeper", list(keeper.argv), dict(keeper.environment), home.logs)
    time.sleep(5)
    idle = share_of_core(kept.pid, IDLE_SECONDS)
    experts = members(workspaces)
    runs = queue_runs(experts, jobs)
    queued = Job.objects.filter(queue="gpu", state=QUEUED)
    # Nothing is rung for until all workers are there: their start fills the cores that claims are timed on.
    queued.update(due_at=datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1))
    waiting = page_times(home.url, experts[-1], runs[-1])
    for number in range(workers):
        start_worker(stack, home, number)
    until(lambda: Worker.objects.filter(queue="gpu").count() == workers)
    began, (busy_before, all_before) = time.monotonic(), processor_times()
    queued.update(due_at=None)
    until(lambda: Attempt.objects.count() > workers)
    loaded = page_times(home.url, experts[-1], runs[-1])
    keeper_busy = share_of_core(kept.pid, 5)
    until(lambda: not Job.objects.filter(queue="gpu", state__in=(QUEUED, "running")).exists())
    whole, (busy_after, all_after) = time.monotonic() - began, processor_times()
    attempts = Attempt.objects.count()
    return {
        "shares_at_half": deviation(jobs // 2),
        "claim": claims(home),
        "claim_in_web": claims_in_web(home),
        "page_while_all_wait": {name: spread(times) for name, times in waiting.items()},
        "page_under_load": {name: spread(times) for name, times in loaded.items()},
        "keeper_core_idle": round(idle, 4),
        "keeper_core_busy": round(keeper_busy, 4),
        "whole_seconds": round(whole, 1),
        "cores_busy": round((busy_after - busy_before) / (all_after - all_before), 2),
        "jobs_ended": Job.objects.filter(queue="gpu", state__in=ENDED).count(),
        "attempts_more_than_jobs": attempts - jobs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--workspaces", type=int, default=20)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.4, help="how long a job takes at the least")
    given = vars(parser.parse_args())
    line = Line("jobs")
    with ExitStack() as stack:
        figures = measure(stack, **given)
    line.end({**given, **figures})


if __name__ == "__main__":
    main()
