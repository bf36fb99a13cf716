"""`python -m workers agent`: the agent beside one vLLM, configured by its environment."""

import argparse
import logging
import os
import signal
import sys

from workers.serving.agent import Agent
from workers.serving.health import serve_health
from workers.serving.settings import read_settings
from workers.wire.environment import SettingsError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Environment: STILLHOUSE_URL, AGENT_TOKEN, ENGINE_URL, POOL, REPLICA, ADAPTERS_DIR, BASES_DIR; "
        "optional ENGINE_ADVERTISED_URL (the engine as the gateway reaches it), MAX_LORA_RANK (64) and "
        "MAX_CPU_LORAS (what the engine was started with; without it every version is loaded), "
        "HEALTH_PORT (readiness and drain, on loopback). "
        "Each one also as NAME_FILE."
    )


def run(args: argparse.Namespace) -> int:
    """Runs until SIGTERM or SIGINT. What the engine holds stays loaded."""
    del args
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        settings = read_settings(os.environ)
    except SettingsError as error:
        print(f"The agent cannot start: {error}", file=sys.stderr)
        return 2
    agent = Agent(settings)
    if settings.health_port:
        serve_health(agent, settings.health_port)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    agent.run()
    return 0
