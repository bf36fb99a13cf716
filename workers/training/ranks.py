"""One run on several devices: this process is the first rank, and starts the others beside it.

What is shared out is the work: the plan of packs is the whole run's, and of every step each rank takes its
share of the packs. The gradients of the LoRA masters are one vector (`lora.py`), so the ranks add them up by
one all-reduce a step, over NCCL on GPUs and gloo on CPUs, and then all take the same optimizer step.

What is not sharded is memory: every rank holds the whole frozen base, the masters and the optimizer. A base
that does not fit one device does not fit several. FSDP2's `fully_shard` is not used: it gathers parameters of
modules, and the decoder multiplies packed weights that are no parameters (`frozen.py`).

Only the first rank writes files, reports, evaluates and asks whether to stop. All ranks are on one host.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

import workers
from workers.contract import Message, TrainSpec
from workers.training.errors import TrainingError
from workers.training.plan import Packing

LONGEST_WAIT = timedelta(days=1)
"""The others wait while the first evaluates. A rank that died is noticed by its closed connections."""
POLL_SECONDS = 0.05
PR_SET_PDEATHSIG = 1


class RankFailure(Message):
    """What stopped a rank other than the first, as failure-RANK.json."""

    code: str
    message: str
    fault: Literal["user", "platform"]


class RankJob(Message):
    """What a rank other than the first is started with, as rank.json."""

    spec: TrainSpec
    base: str
    data: str
    eval_data: str | None
    out: str
    resume: bool
    parent: int
    """Process id of the first rank."""


@dataclass
class Ranks:
    """This process among those of the run. One alone needs no others, and does nothing here."""

    rank: int = 0
    world: int = 1
    folder: Path = Path()
    """Where they meet; it holds nothing of the run."""
    has_met: bool = False
    """The ranks have added up in the step that is being taken: it cannot be taken again by one of them."""
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, step: Packing) -> Packing:
        """Begin a step: the packs that this rank computes; none when there are fewer packs than ranks."""
        self.has_met = False
        return step[self.rank :: self.world]

    def join(self) -> None:
        """Wait until all ranks are ready to train. Raises TrainingError when one of them ended instead."""
        if self.world == 1:
            return
        _ready(self.folder, self.rank).touch()
        while not all(_ready(self.folder, rank).exists() for rank in range(self.world)):
            self.check_others()
            time.sleep(POLL_SECONDS)
        store = dist.FileStore(str(self.folder / "store"), self.world)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, store=store, rank=self.rank, world_size=self.world, timeout=LONGEST_WAIT
        )

    def agree_on(self, step: int) -> None:
        """Raises TrainingError unless all ranks go on from the same step."""
        if self.world == 1:
            return
        steps = torch.tensor([step, -step])
        self._add_up(steps, dist.ReduceOp.MAX)
        if int(steps[0]) != -int(steps[1]):
            raise TrainingError(
                "ranks_disagree",
                "The processes of the run found different checkpoints to go on from. Resume once more.",
                fault="platform",
            )

    def seed_step(self, seed: int, step: int) -> None:
        """Give each rank's dropout its own numbers, the same ones when the step is taken again after a stop:
        a checkpoint holds the random state of the first rank alone."""
        if self.world > 1:
            torch.manual_seed((seed * 1_000_003 + step) * self.world + self.rank)

    def sum_up(self, gradient: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        """Add up the ranks' gradients in place and return the sum of their losses.

        The loss goes first and over the host: where a rank is gone gloo says so at once, NCCL would wait.
        """
        if self.world == 1:
            return loss
        self.has_met = True
        total = loss.cpu()
        self._add_up(total, dist.ReduceOp.SUM)
        self._add_up(gradient, dist.ReduceOp.SUM)
        return total

    def check_others(self) -> None:
        """Raises TrainingError when a process that this one started has ended."""
        for rank, process in enumerate(self.others, start=1):
            status = process.poll()
            if status:
                raise _lost(f"Process {rank + 1} of {self.world} ended {_how(status)}", self.folder, rank)

    def _add_up(self, tensor: torch.Tensor, how: "dist.ReduceOp.RedOpType") -> None:
        try:
            dist.all_reduce(tensor, how)
        except RuntimeError:
            # The connection closes a moment before the process can be asked how it ended.
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                self.check_others()
                time.sleep(POLL_SECONDS)
            raise _lost("The processes of the run lost each other", self.folder, 0) from None


ALONE = Ranks()


@contextmanager
def started(job: RankJob) -> Iterator[Ranks]:
    """Start the other ranks of `job` and yield the first; at the end, however it comes, none is left.

    Raises TrainingError when this machine has fewer GPUs than the spec asks for.
    """
    world = job.spec.devices
    if world == 1:
        yield ALONE
        return
    present = torch.cuda.device_count()
    if torch.cuda.is_available() and present < world:
        raise TrainingError(
            "too_few_devices",
            f"The run asks for {world} devices and this machine has {present}. Set devices={present}.",
        )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // world)))
    # Ranks speak to each other over loopback alone.
    os.environ.update(GLOO_SOCKET_IFNAME="lo", NCCL_SOCKET_IFNAME="lo")
    # In the run's own folder: what a killed run leaves is removed with it, or by the next attempt.
    folder = Path(job.out) / "ranks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "rank.json").write_text(job.model_dump_json(), encoding="utf-8")
    ranks = Ranks(world=world, folder=folder)
    try:
        ranks.others.extend(_start(folder, rank) for rank in range(1, world))
        yield ranks
    finally:
        for process in ranks.others:
            process.kill()
            process.wait()
        if dist.is_initialized():
            dist.destroy_process_group()
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, rank: int) -> subprocess.Popen[bytes]:
    source = str(Path(workers.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    # In this process's group, so that whoever ends the group ends them all.
    return subprocess.Popen(
        [sys.executable, "-m", "workers.training.ranks", str(folder), str(rank)],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=2,
    )


def _ready(folder: Path, rank: int) -> Path:
    return folder / f"ready-{rank}"


def _failure(folder: Path, rank: int) -> Path:
    return folder / f"failure-{rank}.json"


def _how(status: int) -> str:
    return f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"


def _lost(what: str, folder: Path, rank: int) -> TrainingError:
    """What the rank itself had to say, if it could."""
    try:
        failure = RankFailure.model_validate_json(_failure(folder, rank).read_bytes())
    except (OSError, ValueError):
        return TrainingError(
            "rank_lost", f"{what}, so the run stopped. Resume from its newest checkpoint.", fault="platform"
        )
    return TrainingError(failure.code, failure.message, failure.fault)


def main(folder: Path, rank: int) -> int:
    """A rank other than the first: the same run, of which it keeps nothing."""
    job = RankJob.model_validate_json((folder / "rank.json").read_bytes())
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != job.parent:  # it died before the line above
        return 1
    # The first rank hears an interruption, and ends this one when it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from workers.training.engine import train  # noqa: PLC0415 - it imports this module

    try:
        train(
            job.spec,
            base=Path(job.base),
            data=Path(job.data),
            eval_data=None if job.eval_data is None else Path(job.eval_data),
            out=Path(job.out),
            on_event=lambda _: None,
            resume=job.resume,
            ranks=Ranks(rank=rank, world=job.spec.devices, folder=folder),
        )
    except TrainingError as error:
        failure = RankFailure(code=error.code, message=error.message, fault=error.fault)
        _failure(folder, rank).write_text(failure.model_dump_json(), encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
