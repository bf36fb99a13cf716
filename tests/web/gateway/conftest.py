"""A gateway on real uvicorn over the test database, and people with things to call."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import openai
import pytest
import uvicorn
from django.db import connection

from stillhouse.accounts.actions import add_member, create_key, create_workspace
from stillhouse.accounts.models import ApiKey, Membership, Role
from stillhouse.adapters.models import AdapterVersion
from stillhouse.gateway.app import Gateway
from stillhouse.gateway.config import GatewayConfig
from stillhouse.gateway.connection import Receive, Scope, Send
from stillhouse.serving.actions import add_pool, sync_pool
from tests import registry
from tests.web.gateway.engine import Engine

PASSWORD = "correct horse battery"


@dataclass
class Serving:
    """A gateway that answers at `url`."""

    url: str
    gateway: Gateway

    def client(self, secret: str, *, retries: int = 0) -> openai.OpenAI:
        return openai.OpenAI(api_key=secret, base_url=f"{self.url}/v1", max_retries=retries, timeout=20)


@dataclass
class House:
    """Two workspaces, an engine, and an app's key for each workspace."""

    expert: Membership
    lead: Membership
    outsider: Membership
    engine: Engine
    key: ApiKey
    secret: str
    outsider_secret: str

    def approved(self, adapter: str = "contract-clauses") -> AdapterVersion:
        """An approved version that the engine holds."""
        version = registry.approved(self.expert, self.lead, adapter_name=adapter)
        self.report(version)
        return version

    def candidate(self, adapter: str = "contract-clauses") -> AdapterVersion:
        version = registry.candidate(self.expert, adapter_name=adapter)
        self.report(version)
        return version

    def report(self, *more: AdapterVersion, state: str = "ready", **changes: object) -> None:
        """The agent reports these versions beside what the engine held before."""
        self.held = [version for version in self.held if version not in more] + list(more)
        if state == "ready":
            self.engine.models.update(version.serving_name for version in more)
        held = [registry.held(version, state if version in more else "ready") for version in self.held]
        report = registry.pool_report(*held, **{"url": self.engine.url, **changes})
        sync_pool(pool_name=registry.POOL, report=report)

    def __post_init__(self) -> None:
        self.held: list[AdapterVersion] = []


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(models={registry.DEMO_BASE})
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
def house(transactional_db: None, engine: Engine) -> House:
    acme = create_workspace(name="Acme", slug="acme")
    globex = create_workspace(name="Globex", slug="globex")

    def member(workspace: object, who: str, role: Role) -> Membership:
        return add_member(
            workspace=workspace,  # type: ignore[arg-type]
            email=f"{who}@example.com",
            password=PASSWORD,
            name=who.title(),
            role=role,
        )

    expert, lead = member(acme, "erin", Role.EXPERT), member(acme, "lee", Role.LEAD)
    outsider = member(globex, "olga", Role.LEAD)
    key, secret = create_key(by=lead, name="app")
    _, outsider_secret = create_key(by=outsider, name="their app")
    add_pool(name=registry.POOL, base=registry.available_base())
    house = House(expert, lead, outsider, engine, key, secret, outsider_secret)
    house.report()
    return house


def database_url() -> str:
    """Of the test database that pytest-django made."""
    at = connection.settings_dict
    return f"postgresql://{at['USER']}:{at['PASSWORD']}@{at['HOST']}:{at['PORT']}/{at['NAME']}"


@pytest.fixture
def serve() -> Iterator[Callable[..., Serving]]:
    """Starts gateways; they stop at the end of the test."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(config: GatewayConfig) -> Serving:
        gateway = Gateway(config)

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            await (
                gateway.lifespan(receive, send)
                if scope["type"] == "lifespan"
                else gateway(scope, receive, send)
            )

        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        server = uvicorn.Server(
            uvicorn.Config(
                application, host="127.0.0.1", port=port, loop="uvloop", http="httptools", log_level="warning",
                log_config=None, access_log=False, timeout_graceful_shutdown=2,
            )
        )  # fmt: skip
        started = threading.Event()

        async def run() -> None:
            serving = asyncio.create_task(server.serve())
            while not server.started and not serving.done():
                await asyncio.sleep(0.005)
            started.set()
            await serving

        thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True, name="gateway")
        thread.start()
        assert started.wait(10) and server.started
        running.append((server, thread))
        return Serving(f"http://127.0.0.1:{port}", gateway)

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(timeout=10)


@pytest.fixture
def serving(house: House, serve: Callable[[GatewayConfig], Serving]) -> Serving:
    return serve(GatewayConfig(database_url=database_url()))
