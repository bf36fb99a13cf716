"""Serving: what an agent says its engine holds, and what the platform wants it to hold.

Bearer `AGENT_TOKEN`.
"""

from typing import Literal

from pydantic import Field

from workers.contract.base import CONTRACT_VERSION, FileName, Message, Sha256


class ServingProof(Message):
    """Golden token log-probabilities, measured on this replica against the trainer's."""

    adapter_distance: float
    """Mean absolute difference in nats between what the replica gives under the adapter's name and the
    trainer's."""
    base_distance: float
    """The same for what the replica gives under the base's name: what a replica that ignores the adapter
    would show."""
    tokens: int
    effect: float | None = None
    """How far the adapter moves the trainer's own base on these tokens: root mean square, nats a token."""
    share: float | None = None
    """How much of that move this replica shows, quantisation cancelled: about 1 when it applies the adapter,
    0 when it ignores it."""
    share_error: float | None = None
    """Standard error of `share`."""
    code: Literal["applied", "adapter_without_effect"] = "applied"
    """`adapter_without_effect`: it differs too little from its base for a replica to show the difference."""


class HeldVersion(Message):
    """One adapter version on this replica."""

    name: str
    """Immutable name, `<adapter>@<first 12 of digest>`."""
    digest: Sha256
    """sha256 of manifest.json."""
    state: Literal["loading", "ready", "failed"]
    error: str = Field(default="", max_length=1000)
    proof: ServingProof | None = None
    load_ms: float | None = None


class PoolReport(Message):
    """POST /worker/v1/pools/<pool>/sync"""

    contract: int = CONTRACT_VERSION
    replica: str = Field(min_length=1, max_length=120)
    url: str
    """Base URL of the engine as the gateway reaches it (no /v1)."""
    incarnation: str
    """Changes when the engine restarts."""
    healthy: bool
    engine: str = ""
    """Engine and version."""
    base: str = ""
    """Name the engine serves its base under."""
    base_digest: Sha256 | None = None
    capacity: int = Field(default=0, ge=0, le=100_000)
    """Adapters the engine keeps in memory (`--max-cpu-loras`); 0 when the agent was not told."""
    leaving: bool = False
    """The agent is about to stop: send no new requests here."""
    trouble: str = Field(default="", max_length=300)
    """What the agent itself cannot do, apart from single versions. For the pool page."""
    held: list[HeldVersion]


class PoolWait(Message):
    """POST /worker/v1/pools/<pool>/wait: answered with nothing as soon as what the pool should hold changes,
    or when the time is over. A doorbell for the next sync, which says what changed."""

    contract: int = CONTRACT_VERSION
    seconds: float = Field(default=10.0, gt=0, le=60)


class WantedFile(Message):
    name: FileName
    url: str
    size: int
    sha256: Sha256


class WantedVersion(Message):
    name: str
    digest: Sha256
    files: list[WantedFile]
    """Adapter files and manifest.json. URLs are short-lived; a later answer brings fresh ones."""
    required: bool = False
    """Apps are answered with it: a replica without it is not ready to join its pool."""


class PoolWanted(Message):
    """What this replica should hold, the most important first."""

    wanted: list[WantedVersion]
    poll_seconds: float
    """When to come back."""
