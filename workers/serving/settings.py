"""The agent's environment, read once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from workers.wire.environment import SettingsError, read, read_folder, read_number, read_url


@dataclass(frozen=True)
class AgentSettings:
    url: str
    """STILLHOUSE_URL: base URL of the platform."""
    token: str
    """AGENT_TOKEN."""
    engine_url: str
    """ENGINE_URL: the engine as this agent reaches it."""
    advertised_url: str
    """ENGINE_ADVERTISED_URL: the engine as the gateway reaches it; ENGINE_URL when both are on one host."""
    pool: str
    """POOL: name of the pool this replica belongs to."""
    replica: str
    """REPLICA: name of this replica, unique in its pool."""
    adapters_dir: Path
    """ADAPTERS_DIR: local files of adapters, at the same absolute path for the engine."""
    bases_dir: Path
    """BASES_DIR: the weights the engine serves, BASES_DIR/<served name>."""
    max_rank: int
    """MAX_LORA_RANK: what the engine was started with."""
    capacity: int = 0
    """MAX_CPU_LORAS: what the engine was started with; 0 when it is not set."""
    health_port: int = 0
    """HEALTH_PORT: where probes of this host ask for readiness, on loopback; 0 for nowhere."""

    def __repr__(self) -> str:
        """Without the token: settings end up in logs."""
        return f"AgentSettings(pool={self.pool!r}, replica={self.replica!r}, engine_url={self.engine_url!r})"


def read_settings(environ: Mapping[str, str]) -> AgentSettings:
    """Raises SettingsError with one sentence about the first setting that is missing or wrong."""
    engine_url = read_url(environ, "ENGINE_URL")
    pool = read(environ, "POOL")
    if not pool.replace("-", "").replace("_", "").isalnum() or not pool.isascii():
        raise SettingsError("POOL is the name of a pool: letters, digits, - and _ only.")
    return AgentSettings(
        url=read_url(environ, "STILLHOUSE_URL"),
        token=read(environ, "AGENT_TOKEN"),
        engine_url=engine_url,
        advertised_url=read_url(environ, "ENGINE_ADVERTISED_URL", engine_url),
        pool=pool,
        replica=read(environ, "REPLICA")[:120],
        adapters_dir=read_folder(environ, "ADAPTERS_DIR", create=True),
        bases_dir=read_folder(environ, "BASES_DIR"),
        max_rank=read_number(environ, "MAX_LORA_RANK", 64),
        capacity=_number_or_none(environ, "MAX_CPU_LORAS"),
        health_port=_number_or_none(environ, "HEALTH_PORT"),
    )


def _number_or_none(environ: Mapping[str, str], name: str) -> int:
    """0 when it is not set."""
    return read_number(environ, name, 1) if environ.get(name) or environ.get(f"{name}_FILE") else 0
