"""Postgres, Valkey and the S3 server for one pytest session: the embedded ones, in a throw-away folder."""

import asyncio
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Coroutine
from pathlib import Path

import certifi

from stillhouse.embedded import services
from stillhouse.embedded.home import Home, reserve_port
from stillhouse.embedded.process import Process

EMPTY = """
DO $$ DECLARE found regclass; BEGIN
    FOR found IN
        SELECT oid::regclass FROM pg_class
        WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
            AND relname NOT IN ('django_migrations', 'django_content_type', 'auth_permission')
    LOOP
        EXECUTE format('DELETE FROM %s', found);
    END LOOP;
END $$
"""


class Stores:
    """The three servers of one session: ports and secrets are known at once, `start` makes them answer."""

    def __init__(self) -> None:
        self.home = Home(path=Path(tempfile.mkdtemp(prefix="stillhouse-tests-")), web_port=reserve_port())
        self.home.create()
        self._processes: list[Process] = []
        self._loop = asyncio.new_event_loop()
        # A thread as long-lived as the session: the kernel ends children with the thread that forked them.
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="stores")

    def settings(self) -> dict[str, str]:
        """The environment for settings.py."""
        # The object store takes uploads from pages at this one address: browser tests serve theirs there.
        return {
            **self.home.settings(),
            "STILLHOUSE_URL": "http://testserver",
            "STILLHOUSE_TEST_URL": self.home.url,
            "SSL_CERT_FILE": str(self._authority()),
        }

    def _authority(self) -> Path:
        """A single public authority. No test needs any, and every HTTP client would read all that there are,
        which takes longer than most of the requests here."""
        file = self.home.path / "authority.pem"
        first, end, _ = (
            Path(certifi.where()).read_text(encoding="utf-8").partition("-----END CERTIFICATE-----\n")
        )
        file.write_text(first + end, encoding="utf-8")
        return file

    def start(self) -> None:
        """Start the servers and wait until they answer."""
        self._thread.start()
        self._run(self._start())
        services.prepare_database(self.home, may_create_databases=True)

    def stop(self) -> None:
        """Stop the servers and remove everything they stored."""
        if self._thread.is_alive():
            self._run(self._stop())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=5)
        shutil.rmtree(self.home.path, ignore_errors=True)

    def empty(self, database: str) -> None:
        """Remove the rows that tests have committed, in any order and past append-only triggers."""
        with services.connect_as_admin(self.home, database) as admin:
            admin.execute("SET session_replication_role = replica")
            admin.execute(EMPTY)

    def cut_power(self) -> None:
        """`kill -9` to the three servers and all their children, whatever they are writing."""
        for process in self._processes:
            os.killpg(process.pid, signal.SIGKILL)
        self._run(self._stop())

    def ended(self) -> list[str]:
        """The servers that do not run."""
        return [process.program.name for process in self._processes if not process.running]

    def start_again(self) -> None:
        """The servers that do not run, over what they had stored."""
        self._run(self._start())

    async def _start(self) -> None:
        running = {process.program.name: process for process in self._processes if process.running}
        self._processes.clear()
        for program in services.service_programs(self.home, throwaway=True):
            process = running.get(program.name) or Process(program, self.home.logs / f"{program.name}.log")
            if not process.running:
                await process.start()
            self._processes.append(process)
        await asyncio.gather(*(process.wait_until_ready() for process in self._processes))

    async def _stop(self) -> None:
        await asyncio.gather(*(process.stop() for process in self._processes))

    def _run(self, work: Coroutine[object, object, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=180)
