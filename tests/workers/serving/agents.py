"""A running agent, what the platform wants of it, and what it says that it holds."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.workers.serving.adapters import Built
from tests.workers.standin import PlatformStandIn
from workers.contract import PoolWanted, WantedVersion
from workers.serving.agent import Agent
from workers.serving.settings import AgentSettings


@contextmanager
def running(settings: AgentSettings) -> Iterator[Agent]:
    """An agent at work in a thread; it stops at the end."""
    agent = Agent(settings)
    thread = threading.Thread(target=agent.run, daemon=True)
    thread.start()
    try:
        yield agent
        assert thread.is_alive(), "nothing may end the loop"
    finally:
        agent.stop()
        thread.join(10)


def want(platform: PlatformStandIn, *versions: Built, **changes: Any) -> list[WantedVersion]:
    """Have every sync answered with these versions; returns what the answer says of them."""
    wanted = [
        WantedVersion.model_validate(
            {
                "name": built.name,
                "digest": built.digest,
                "files": [
                    platform.wanted(built.digest[:8], name, body) for name, body in built.files.items()
                ],
            }
            | changes
        )
        for built in versions
    ]
    platform.sync = lambda report: (200, PoolWanted(wanted=wanted, poll_seconds=0.2))
    return wanted


def held(platform: PlatformStandIn, state: str) -> list[dict[str, Any]]:
    """The versions in this state by the agent's last report."""
    last = platform.syncs[-1]["held"] if platform.syncs else []
    return [version for version in last if version["state"] == state]
