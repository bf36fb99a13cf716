"""One supervised process: how it starts, when it is ready, how it stops, what becomes of it when we die."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stillhouse.embedded.home import REPOSITORY, SETTING_NAMES, EmbeddedError

LOG_ROTATES_AT = 20 * 1024**2
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Program:
    """What to run, and how to tell that it works."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    """Its part of the platform's settings; see `child_environment`."""
    ready: Callable[[], Awaitable[bool]] | None = None
    """Whether it answers; None: it has no door to knock at."""
    ready_line: str = ""
    """What it writes to its log when it is ready, for one without a door."""
    start_timeout: float = 60.0
    """Seconds from start to ready."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout: float = 10.0
    """Seconds from the stop signal to SIGKILL."""
    orphan_signal: str = "KILL"
    """What the kernel sends it when the supervisor dies (a name that `setpriv --pdeathsig` knows)."""
    user: tuple[int, int] | None = None
    """uid and gid to drop to, for a program that refuses to run as root."""

    def command(self) -> list[str]:
        """The whole command line, behind `setpriv`, which becomes the program itself (same pid)."""
        command = ["setpriv", "--pdeathsig", self.orphan_signal]
        if self.user is not None:
            # Reading past a folder such as /root (mode 700) is all that it keeps of root's powers.
            uid, gid = self.user
            command += ["--reuid", str(uid), "--regid", str(gid), "--clear-groups"]
            command += ["--inh-caps", "-all,+dac_override", "--ambient-caps", "-all,+dac_override"]
            # access(2), which initdb and postgres ask about their own files, would otherwise leave that out.
            command += ["--securebits", "+no_setuid_fixup", "--no-new-privs"]
        return [*command, "--", *self.argv]


@dataclass
class Process:
    """A running (or stopped) `Program`, leader of its own session: its children can be ended with it."""

    program: Program
    log: Path
    child: asyncio.subprocess.Process | None = None
    started: float = field(default=0.0)
    """time.monotonic() of the last start."""
    log_began: int = field(default=0)
    """Where in the log the last start begins, in bytes."""

    @property
    def pid(self) -> int:
        if self.child is None:
            raise RuntimeError(f"{self.program.name} was never started")
        return self.child.pid

    @property
    def running(self) -> bool:
        return self.child is not None and self.child.returncode is None

    async def start(self) -> None:
        """Start it, its output going to its log. Call from the main thread only: the kernel's death signal
        (PR_SET_PDEATHSIG) is tied to the thread that forks."""
        if self.log.exists() and self.log.stat().st_size > LOG_ROTATES_AT:
            self.log.replace(self.log.with_suffix(".log.1"))
        self.started = time.monotonic()
        with self.log.open("ab") as log:
            self.log_began = log.tell()
            self.child = await asyncio.create_subprocess_exec(
                *self.program.command(),
                cwd=REPOSITORY,
                env=child_environment(self.program.environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )

    async def wait_until_ready(self) -> float:
        """Wait for its readiness check; return the seconds since its start.

        Raises:
            EmbeddedError: it ended, or did not answer in time. The sentence carries the end of its log.
        """
        name, limit = self.program.name, self.program.start_timeout
        while True:
            if not self.running:
                assert self.child is not None
                raise EmbeddedError(
                    f"{name} {describe_exit(self.child.returncode)} while starting.\n{self.log_tail()}"
                )
            if await self._is_ready():
                return time.monotonic() - self.started
            if time.monotonic() - self.started > limit:
                raise EmbeddedError(
                    f"{name} did not answer within {limit:.0f} s of its start.\n{self.log_tail()}"
                )
            await asyncio.sleep(POLL_SECONDS)

    async def _is_ready(self) -> bool:
        if self.program.ready is not None and not await self.program.ready():
            return False
        if not self.program.ready_line:
            return True
        with self.log.open("rb") as file:
            file.seek(self.log_began)
            return self.program.ready_line.encode() in file.read()

    async def stop(self) -> None:
        """Ask it to end, insist after `stop_timeout`, and end whatever it left in its session."""
        if self.child is None:
            return
        if self.running:
            self.child.send_signal(self.program.stop_signal)
            try:
                await asyncio.wait_for(self.child.wait(), self.program.stop_timeout)
            except TimeoutError:
                self.child.kill()
                await self.child.wait()
        kill_session(self.child.pid)

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of its log, indented, with where to read the rest."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 16_384))
                tail = file.read().decode("utf-8", "replace").splitlines()[-lines:]
        except FileNotFoundError:
            tail = []
        return "\n".join([f"  The end of {self.log}:", *(f"    {line}" for line in tail)])


def child_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Our environment with just these of the platform's settings: a worker gets no database password."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name.removesuffix("_FILE") not in SETTING_NAMES and name != "DJANGO_SETTINGS_MODULE"
    }
    return {**inherited, "PYTHONUNBUFFERED": "1", **settings}


def describe_exit(code: int | None) -> str:
    """`ended with exit code 3`, or `was killed by SIGKILL`."""
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def start_time(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot (stat field 22 in proc(5)); None if it is gone."""
    fields = _stat(pid)
    return None if fields is None or fields[0] == "Z" else int(fields[19])


def is_zombie(pid: int) -> bool:
    """Whether `pid` has ended and its parent has not asked how."""
    fields = _stat(pid)
    return fields is not None and fields[0] == "Z"


def session_members(leader: int, *, started: int = 0) -> list[int]:
    """The living processes of the session that `leader` opened, of those that began no earlier than `started`
    (ticks since boot)."""
    members = []
    for entry in Path("/proc").iterdir():
        fields = _stat(int(entry.name)) if entry.name.isdecimal() else None
        if fields and fields[0] != "Z" and int(fields[3]) == leader and int(fields[19]) >= started:
            members.append(int(entry.name))
    return members


def descendants(pids: set[int]) -> set[int]:
    """These processes, their children, and theirs."""
    parents = {
        int(entry.name): int(fields[1])
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal() and (fields := _stat(int(entry.name)))
    }
    found = set(pids)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def kill_session(leader: int, *, started: int = 0) -> bool:
    """SIGKILL the `session_members`; return whether there were any."""
    members = session_members(leader, started=started)
    for pid in members:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return bool(members)


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on: state, ppid, pgrp, session, .. (19 = start time)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()
