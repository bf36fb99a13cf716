"""The worker's environment, read once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from workers.wire.environment import read, read_folder, read_url

SECRET_FILE = "worker.secret"
"""In WORK_DIR: what this worker got when it enrolled."""


@dataclass(frozen=True)
class WorkerSettings:
    url: str
    """STILLHOUSE_URL: base URL of the platform."""
    token: str
    """WORKER_TOKEN, or the secret that this worker got when it enrolled."""
    broker_url: str
    """BROKER_URL: Redis or Valkey."""
    bases_dir: Path
    """BASES_DIR: one folder of weights per base, named by its catalog id."""
    work_dir: Path
    """WORK_DIR: job folders live in WORK_DIR/jobs."""
    name: str
    """WORKER_NAME, shown to people."""
    enrol_token: str = ""
    """WORKER_ENROL_TOKEN: used once, for a secret of this worker's own; then WORKER_TOKEN is not needed."""

    def __repr__(self) -> str:
        """Without the secrets: settings end up in logs."""
        return f"WorkerSettings(url={self.url!r}, name={self.name!r}, work_dir={str(self.work_dir)!r})"


def read_settings(environ: Mapping[str, str]) -> WorkerSettings:
    """Raises SettingsError with one sentence about the first setting that is missing or wrong."""
    url = read_url(environ, "STILLHOUSE_URL")
    work_dir = read_folder(environ, "WORK_DIR", create=True)
    enrol_token = read(environ, "WORKER_ENROL_TOKEN", "")
    own = enrol_token or (work_dir / SECRET_FILE).exists()
    return WorkerSettings(
        url=url,
        token=read(environ, "WORKER_TOKEN", "" if own else None),
        enrol_token=enrol_token,
        broker_url=read(environ, "BROKER_URL"),
        bases_dir=read_folder(environ, "BASES_DIR"),
        work_dir=work_dir,
        name=read(environ, "WORKER_NAME")[:120],
    )
