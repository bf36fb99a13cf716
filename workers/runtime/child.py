"""The child of an attempt: `python -m workers.runtime.child FOLDER --events-fd N --parent PID`.

Reads FOLDER/job.json, does the work, and leaves result.json or failure.json. Heavy libraries are imported
here, by kind, and nowhere else in the runtime.
"""

import argparse
import contextlib
import ctypes
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from workers.contract import (
    CountSpec,
    EvaluateSpec,
    JobFailure,
    Message,
    TrainProgress,
    TrainSpec,
)
from workers.runtime import datajobs
from workers.runtime.childjob import ChildJob, ChildResult
from workers.runtime.events import ChildEvent, event_of_training
from workers.runtime.outcome import FULL, JobCancelled, JobFailed, failure_of

CANCELLED = 3
"""Exit status of a child that was told to stop and did."""
FAILED = 1
NO_SPACE = 4
"""Exit status of a child that could not even write down why it failed: the disk is full."""
PR_SET_PDEATHSIG = 1

Command = Literal["continue", "checkpoint", "cancel"]
Emit = Callable[[ChildEvent], None]


def main() -> int:
    arguments = _read_arguments()
    die_with_parent(arguments.parent)
    die_first_when_memory_runs_out()
    folder: Path = arguments.folder
    control = Control()
    try:
        job = ChildJob.model_validate_json((folder / "job.json").read_bytes())
        result = work(job, _emitter(arguments.events_fd), control)
        _write(folder / "result.json", ChildResult(result=result.model_dump(mode="json")))
    except JobCancelled:
        return CANCELLED
    except JobFailed as failed:
        return _leave_failure(folder, failed.failure)
    except Exception as error:
        with contextlib.suppress(OSError):
            traceback.print_exc()  # to child.log, on this host
        return _leave_failure(folder, failure_of(error))
    return 0


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the worker dies, however it dies."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the line above
        os.kill(os.getpid(), signal.SIGKILL)


def die_first_when_memory_runs_out() -> None:
    """Have the kernel choose this process before the worker, or a database on the same machine."""
    with contextlib.suppress(OSError):  # a container may forbid it
        Path("/proc/self/oom_score_adj").write_text("900", encoding="ascii")


class Control:
    """The worker's wishes, one a line on standard input; each is handed out once, a cancel for ever."""

    def __init__(self) -> None:
        self._wishes: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._cancelled = False
        threading.Thread(target=self._listen, name="control", daemon=True).start()

    def __call__(self) -> Command:
        """What to do now. Cheap enough to ask after every step."""
        if self._cancelled:
            return "cancel"
        try:
            wish = self._wishes.get_nowait()
        except queue.Empty:
            return "continue"
        self._cancelled = wish == "cancel"
        return wish

    def check(self, *_: object) -> None:
        """For work that knows no checkpoints: raise JobCancelled when it should stop."""
        if self() == "cancel":
            raise JobCancelled

    def _listen(self) -> None:
        for line in sys.stdin:
            if line.strip() == "checkpoint":
                self._wishes.put("checkpoint")
            elif line.strip() == "cancel":
                self._wishes.put("cancel")


def work(job: ChildJob, emit: Emit, control: Control) -> Message:
    """Do the job; returns what result.json holds."""
    with_data = {
        "validate": datajobs.run_validate,
        "derive": datajobs.run_derive,
        "compare": datajobs.run_compare,
        "preview": datajobs.run_preview,
    }
    if job.kind in with_data:
        return with_data[job.kind](job, emit, control.check)
    if job.kind == "train":
        return _train(job, emit, control)
    if job.kind == "count":
        return _count(job, emit, control)
    return _evaluate(job, emit, control)


def _train(job: ChildJob, emit: Emit, control: Control) -> Message:
    from workers.training import train  # noqa: PLC0415 - each kind loads only what it needs
    from workers.training.errors import Cancelled, TrainingError  # noqa: PLC0415

    def on_event(progress: TrainProgress) -> None:
        emit(event_of_training(progress))

    try:
        return train(
            TrainSpec.model_validate(job.spec),
            base=Path(job.base),
            data=Path(job.inputs["data"]),
            eval_data=Path(job.inputs["eval"]) if "eval" in job.inputs else None,
            out=Path(job.out),
            on_event=on_event,
            resume=job.resume,
            run_id=job.subject,
            should_stop=control,
        )
    except Cancelled:
        raise JobCancelled from None
    except TrainingError as error:
        raise JobFailed(error.code, error.message, error.fault) from None


def _count(job: ChildJob, emit: Emit, control: Control) -> Message:
    from workers.runtime.limits import limit_this_process  # noqa: PLC0415
    from workers.training.counting import count  # noqa: PLC0415
    from workers.training.errors import TrainingError  # noqa: PLC0415

    def on_progress(rows: int) -> None:
        control.check()
        emit(ChildEvent(phase="counting", message=f"{rows:,} rows counted.", step=rows))

    spec = CountSpec.model_validate(job.spec)
    limit_this_process(memory_bytes=spec.memory_bytes, seconds=spec.seconds)
    try:
        return count(spec, base=Path(job.base), data=Path(job.inputs["data"]), on_progress=on_progress)
    except TrainingError as error:
        raise JobFailed(error.code, error.message, error.fault) from None
    except MemoryError:
        raise JobFailed("memory_limit", "The rows need more memory than a count may take.", "user") from None


def _evaluate(job: ChildJob, emit: Emit, control: Control) -> Message:
    from workers.evaluation.errors import EvaluationCancelled, EvaluationError  # noqa: PLC0415
    from workers.evaluation.prompts import read_prompts  # noqa: PLC0415
    from workers.evaluation.suite import SuiteProgress, evaluate  # noqa: PLC0415

    def on_progress(progress: SuiteProgress) -> None:
        step, total = progress.done, progress.total
        emit(ChildEvent(phase="evaluating", message=progress.message, step=step, total_steps=total))

    spec = EvaluateSpec.model_validate(job.spec)
    data = Path(job.inputs["data"])
    try:
        prompts = read_prompts(data, split=spec.split, max_rows=spec.max_rows, think=spec.think)
        return evaluate(
            spec,
            prompts,
            out=Path(job.out),
            on_progress=on_progress,
            should_stop=lambda: control() == "cancel",
        )
    except EvaluationCancelled:
        raise JobCancelled from None
    except EvaluationError as error:
        raise JobFailed(error.code, error.message, error.fault) from None


def _emitter(descriptor: int) -> Emit:
    """Write events as JSON lines; a worker that went away is noticed by the kernel, not here."""
    stream = os.fdopen(descriptor, "w", encoding="utf-8")
    lock = threading.Lock()

    def emit(event: ChildEvent) -> None:
        with lock:
            stream.write(event.model_dump_json() + "\n")
            stream.flush()

    return emit


def _leave_failure(folder: Path, failure: JobFailure) -> int:
    try:
        _write(folder / "failure.json", failure)
        print(json.dumps({"fault": failure.fault, "code": failure.code}), file=sys.stderr)
    except OSError as error:
        return NO_SPACE if error.errno in FULL else FAILED
    return FAILED


def _write(path: Path, message: Message) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(message.model_dump_json(), encoding="utf-8")
    os.replace(partial, path)


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="workers.runtime.child")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--events-fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
