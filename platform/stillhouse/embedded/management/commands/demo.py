"""`manage.py demo`: the embedded platform and the main job on it, until Ctrl-C (ONCE=1: until it is done)."""

import asyncio
import os
import signal
import sys

from django.core.management.base import BaseCommand, CommandError

from stillhouse.embedded.home import REPOSITORY, EmbeddedError, Home
from stillhouse.embedded.process import Program, child_environment
from stillhouse.embedded.supervisor import Supervisor, supervise


class Command(BaseCommand):
    help = (
        "Start the embedded platform and run the main job: upload, train, evaluate, approve, publish, chat. "
        "It stays up until Ctrl-C; ONCE=1 stops it, and exits 0 only if every step worked."
    )
    requires_system_checks = ()

    def handle(self, *args: object, **options: object) -> None:
        once = os.environ.get("ONCE") == "1"
        try:
            code = asyncio.run(supervise(Home.from_environment(), once=once, then=demonstrate))
        except EmbeddedError as error:
            raise CommandError(str(error)) from None
        sys.exit(code)


async def demonstrate(supervisor: Supervisor) -> int:
    """Run the demonstration in a process of its own, which talks to the platform over HTTP only."""
    program = Program(
        name="demonstration",
        argv=[sys.executable, "-m", "stillhouse.embedded.demo"],
        environment={"STILLHOUSE_HOME": str(supervisor.home.path), "PYTHONPATH": "platform"},
        orphan_signal="TERM",
    )
    child = await asyncio.create_subprocess_exec(
        *program.command(),
        cwd=REPOSITORY,
        env=child_environment(program.environment),
        stdin=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return await child.wait()
    except asyncio.CancelledError:
        child.send_signal(signal.SIGTERM)
        await child.wait()
        raise
