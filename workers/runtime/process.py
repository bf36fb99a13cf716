"""The child process of an attempt: started, listened to, told, stopped with everything it started."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from pydantic import ValidationError

import workers
from workers.runtime.events import ChildEvent

SOURCE_ROOT = Path(workers.__file__).resolve().parents[1]
SECRETS = tuple(
    name + kind for name in ("WORKER_TOKEN", "WORKER_ENROL_TOKEN", "BROKER_URL") for kind in ("", "_FILE")
)
"""Taken out of the child's environment: it reads other people's data and needs none of them."""
CHILD_MODULE = "workers.runtime.child"
LONGEST_LINE = 1024 * 1024
READ = 64 * 1024


class Child:
    """`python -m workers.runtime.child FOLDER` in its own process group.

    It dies with us: the child asks the kernel for SIGKILL at our death (see `workers.runtime.child`).
    """

    def __init__(self, folder: Path, lock: int) -> None:
        self._events, write_end = os.pipe()
        os.set_blocking(self._events, False)
        self._buffer = b""
        command = [sys.executable, "-m", CHILD_MODULE, str(folder)]
        command += ["--events-fd", str(write_end), "--parent", str(os.getpid())]
        with (folder / "child.log").open("ab") as log_file:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=_environment(),
                stdin=subprocess.PIPE,
                stdout=log_file,
                stderr=log_file,
                pass_fds=(write_end, lock),
                start_new_session=True,
            )
        os.close(write_end)
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        os.close(self._events)

    def events(self, timeout: float) -> list[ChildEvent]:
        """Events that arrived, waiting up to `timeout` seconds for the first."""
        readable, _, _ = select.select([self._events], [], [], timeout)
        if not readable:
            return []
        piece = os.read(self._events, READ)
        if not piece:  # closed its end; it is about to exit
            time.sleep(min(timeout, 0.05))
            return []
        *lines, self._buffer = (self._buffer + piece).split(b"\n")
        if len(self._buffer) > LONGEST_LINE:
            self._buffer = b""
        return [event for line in lines if (event := _parse(line))]

    def tell(self, command: Literal["checkpoint", "cancel"]) -> None:
        """One line on the child's standard input. A child that is gone does not hear it, and need not."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError, ValueError):
                self._process.stdin.write(command.encode() + b"\n")
                self._process.stdin.flush()

    def has_ended(self) -> bool:
        """Whether the child exited.

        It stays a zombie until `kill`, so that its group id cannot be somebody else's.
        """
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self, seconds: float) -> bool:
        """Whether the child exits within `seconds`; its event pipe is kept empty meanwhile."""
        deadline = time.monotonic() + seconds
        while not self.has_ended():
            if time.monotonic() >= deadline:
                return False
            self.events(0.1)
        return True

    def kill(self) -> int:
        """SIGKILL to the whole group, the ended child's leftovers included. Returns the exit status."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            if self._process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    self._process.stdin.close()
        return self._process.wait()


def _parse(line: bytes) -> ChildEvent | None:
    try:
        return ChildEvent.model_validate_json(line)
    except ValidationError:  # cut short by a kill
        return None


def _environment() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(SOURCE_ROOT), environment.get("PYTHONPATH")])
    )
    environment.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    return environment
