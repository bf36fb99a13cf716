"""Where the embedded platform lives: its folder, its secrets, its ports, and the settings they add up to."""

import fcntl
import json
import os
import random
import secrets
import socket
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

REPOSITORY = Path(__file__).resolve().parents[3]
BASE_ID = "smollm2-135m-instruct"
POOL = "demo"
DATABASE = "stillhouse"
PORT_NAMES = (
    "postgres",
    "valkey",
    "vllm",
    "s3",
    "s3_grpc",
    "s3_master",
    "s3_master_grpc",
    "s3_volume",
    "s3_volume_grpc",
    "s3_filer",
    "s3_filer_grpc",
)
SECRET_NAMES = (
    "secret_key",
    "postgres_admin",
    "postgres_app",
    "valkey",
    "s3_access_key",
    "s3_secret_key",
    "worker_token",
    "agent_token",
)
SETTING_NAMES = (
    "STILLHOUSE_HOME",
    "STILLHOUSE_URL",
    "SECRET_KEY",
    "DATABASE_URL",
    "BROKER_URL",
    "S3_ENDPOINT",
    "S3_ACCESS_KEY",
    "S3_SECRET_KEY",
    "S3_BUCKET",
    "WORKER_TOKEN",
    "AGENT_TOKEN",
    "BASES_DIR",
)
"""What `Home.settings` sets, and what a supervised process gets only where its program says so."""
PORT_RANGE = range(20_000, 32_000)
"""Below the range that Linux lends to outgoing connections: a port stays free between two starts."""


class EmbeddedError(Exception):
    """A sentence for the person at the terminal: what is wrong with the embedded platform, and what to do."""


def write_private(path: Path, text: str) -> None:
    """Write `text` to `path`, readable by its owner only, whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def port_is_free(port: int) -> bool:
    """Whether nothing listens on 127.0.0.1:`port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


_reserved: list[socket.socket] = []


def reserve_port(avoid: Collection[int] = ()) -> int:
    """A port of 127.0.0.1 on which nothing listens, and that no other process reserves while this one lives.

    It stays bound without listening: a server, which sets SO_REUSEADDR, may still listen on it, while `bind`
    refuses it to everyone who looks for a port without that option. Two homes made at the same moment would
    else meet on one port, since their servers begin to listen long after it was chosen.
    """
    for port in random.sample(PORT_RANGE, k=500):
        if port in avoid:
            continue
        holder = socket.socket()
        try:
            holder.bind(("127.0.0.1", port))
        except OSError:
            holder.close()
            continue
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _reserved.append(holder)
        return port
    raise EmbeddedError(
        "No free port between 20000 and 32000 on 127.0.0.1. Close what uses them and try again."
    )


@dataclass(frozen=True)
class Home:
    """The folder of one embedded platform (`STILLHOUSE_HOME`), and the port asked for its pages (`PORT`)."""

    path: Path
    web_port: int

    @classmethod
    def from_environment(cls) -> Self:
        path = Path(os.environ.get("STILLHOUSE_HOME") or REPOSITORY / "var")
        port = os.environ.get("PORT") or "8000"
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise EmbeddedError(f"PORT must be a number from 1 to 65535, not {port!r}.")
        return cls(path=path.expanduser().resolve(), web_port=int(port))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports()['web']}"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def base(self) -> Path:
        """The folder of the demonstration base: safetensors, config, tokenizer, chat template."""
        return self.path / "bases" / BASE_ID

    @property
    def exists(self) -> bool:
        return (self.path / "secrets.json").exists() and (self.path / "ports.json").exists()

    def create(self) -> None:
        """Make the folder, its secrets and its ports, keeping what is there."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.logs, self.path / "bases", self.path / "work", self.path / "adapters"):
            folder.mkdir(exist_ok=True)
        if not (self.path / "secrets.json").exists():
            chosen = {name: secrets.token_urlsafe(32) for name in SECRET_NAMES}
            write_private(self.path / "secrets.json", json.dumps(chosen, indent=1))
        if not (self.path / "ports.json").exists():
            self.choose_ports()

    def choose_ports(self) -> None:
        """Keep the remembered ports that are free, replace the others. Only for who holds the lock."""
        remembered = self.ports() if (self.path / "ports.json").exists() else {}
        taken = {self.web_port}
        ports = {"web": self.web_port}
        for name in PORT_NAMES:
            port = remembered.get(name)
            if port is None or port in taken or not port_is_free(port):
                port = reserve_port(taken)
            taken.add(port)
            ports[name] = port
        write_private(self.path / "ports.json", json.dumps(ports, indent=1))

    def ports(self) -> dict[str, int]:
        """The port of each server by name; `web` is the one last started."""
        ports: dict[str, int] = self._read("ports.json")
        return ports

    def secrets(self) -> dict[str, str]:
        secret: dict[str, str] = self._read("secrets.json")
        return secret

    def lock(self) -> IO[str]:
        """Hold this home for one supervisor; keep the returned file open as long as it runs.

        Raises:
            EmbeddedError: another supervisor holds it.
        """
        file = (self.path / "up.lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            pid = file.read().strip() or "unknown"
            file.close()
            raise EmbeddedError(
                f"The platform in {self.path} is already running (process {pid}). Stop it with Ctrl-C there, "
                "or start another with STILLHOUSE_HOME=FOLDER PORT=NUMBER."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        return file

    def settings(self) -> dict[str, str]:
        """The environment of this platform's Django processes, by the names that settings.py reads."""
        secret, port = self.secrets(), self.ports()
        values = {
            "STILLHOUSE_HOME": str(self.path),
            "STILLHOUSE_URL": self.url,
            "SECRET_KEY": secret["secret_key"],
            "DATABASE_URL": f"postgresql://stillhouse:{secret['postgres_app']}@127.0.0.1:{port['postgres']}/{DATABASE}",
            "BROKER_URL": f"redis://:{secret['valkey']}@127.0.0.1:{port['valkey']}/0",
            "S3_ENDPOINT": f"http://127.0.0.1:{port['s3']}",
            "S3_ACCESS_KEY": secret["s3_access_key"],
            "S3_SECRET_KEY": secret["s3_secret_key"],
            "S3_BUCKET": "stillhouse",
            "WORKER_TOKEN": secret["worker_token"],
            "AGENT_TOKEN": secret["agent_token"],
            "BASES_DIR": str(self.path / "bases"),
        }
        assert set(values) == set(SETTING_NAMES)
        return values

    def write_environment(self) -> None:
        """Write the settings to `platform.env`, for people and scripts to source."""
        lines = [f"{name}={value}" for name, value in self.settings().items()]
        write_private(self.path / "platform.env", "\n".join(lines) + "\n")

    def _read(self, name: str) -> Any:
        return json.loads((self.path / name).read_text(encoding="utf-8"))


def settings_for(command: str | None) -> dict[str, str]:
    """What `manage.py` adds to its environment before Django reads it.

    Nothing where DATABASE_URL is set: that is a production machine, or a child of the supervisor. Else the
    settings of the embedded platform, which `up` and `demo` create if need be: `manage.py publish ...` works
    beside `make up` with nothing to export.
    """
    if os.environ.get("DATABASE_URL") or os.environ.get("DATABASE_URL_FILE"):
        return {}
    home = Home.from_environment()
    if command in ("up", "demo"):
        home.create()
    return home.settings() if home.exists else {}
