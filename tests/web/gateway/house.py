"""Two workspaces with something to call, and gateways on real uvicorn over the test database."""

import asyncio
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import openai
import uvicorn
import uvloop
from django.conf import settings
from django.db import connection

from stillhouse.accounts.actions import add_member, create_key, create_workspace
from stillhouse.accounts.models import ApiKey, Membership, Role, User, Workspace
from stillhouse.adapters.models import AdapterVersion
from stillhouse.gateway.app import Gateway
from stillhouse.gateway.config import GatewayConfig
from stillhouse.gateway.connection import Receive, Scope, Send
from stillhouse.gateway.protocol import LimitedHttp
from stillhouse.serving.actions import add_pool, place_version, sync_pool
from tests import registry
from tests.waiting import wait_for
from tests.web.gateway.engine import Engine


@dataclass
class House:
    """The people, the engine, and an app's key for each workspace."""

    expert: Membership
    lead: Membership
    admin: Membership
    outsider: Membership
    engine: Engine
    key: ApiKey
    secret: str
    outsider_secret: str
    held: list[AdapterVersion] = field(default_factory=list)
    """What the engine's agent reports as ready."""

    def approved(self, adapter: str = "contract-clauses", **settings: Any) -> AdapterVersion:
        """An approved version that the engine holds."""
        return self._hold(registry.approved(self.expert, self.lead, adapter_name=adapter, **settings))

    def candidate(self, adapter: str = "contract-clauses") -> AdapterVersion:
        """A candidate that the engine holds."""
        return self._hold(registry.candidate(self.expert, adapter_name=adapter))

    def _hold(self, version: AdapterVersion) -> AdapterVersion:
        place_version(version=version)
        self.held.append(version)
        self.engine.models.add(version.serving_name)
        self.report()
        return version

    def report(self, **changes: Any) -> None:
        """The agent reports; `changes` are fields of PoolReport."""
        fields: dict[str, Any] = {"url": self.engine.url, "held": [registry.held(one) for one in self.held]}
        sync_pool(pool_name=registry.POOL, report=registry.pool_report(**{**fields, **changes}))


def make_house(engine: Engine) -> House:
    acme = create_workspace(name="Acme", slug="acme")
    globex = create_workspace(name="Globex", slug="globex")
    lead = _member(acme, "lee", Role.LEAD)
    outsider = _member(globex, "olga", Role.LEAD)
    key, secret = create_key(by=lead, name="app")
    _, outsider_secret = create_key(by=outsider, name="their app")
    add_pool(name=registry.POOL, base=registry.available_base())
    engine.models.add(registry.DEMO_BASE)
    admin = _member(acme, "ada", Role.ADMIN)
    house = House(
        _member(acme, "erin", Role.EXPERT), lead, admin, outsider, engine, key, secret, outsider_secret
    )
    house.report()
    return house


def _member(workspace: Workspace, who: str, role: Role) -> Membership:
    """Somebody without a password: hashing one takes longer than most of these tests."""
    email = f"{who}@example.com"
    User.objects.create_user(email, None, name=who.title())
    return add_member(workspace=workspace, email=email, password=None, name=who.title(), role=role)


def gateway_config(**changes: Any) -> GatewayConfig:
    """For the test database that pytest-django made."""
    at = connection.settings_dict
    url = f"postgresql://{at['USER']}:{at['PASSWORD']}@{at['HOST']}:{at['PORT']}/{at['NAME']}"
    spool = Path(mkdtemp(prefix="stillhouse-spool-", dir=settings.STILLHOUSE_HOME))  # of the session's stores
    return GatewayConfig(**{"database_url": url, "spool_dir": spool, **changes})


@dataclass
class Serving:
    """A gateway that answers at `url`."""

    url: str
    gateway: Gateway
    server: uvicorn.Server
    thread: threading.Thread

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(timeout=10)

    def client(self, secret: str, *, retries: int = 0) -> openai.OpenAI:
        return openai.OpenAI(api_key=secret, base_url=f"{self.url}/v1", max_retries=retries, timeout=20)


Serve = Callable[[GatewayConfig], Serving]


class Servers:
    """uvicorn servers in threads, as many as a test starts."""

    def __init__(self) -> None:
        self._running: list[Serving] = []

    def start(self, config: GatewayConfig) -> Serving:
        gateway = Gateway(config)

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await gateway.lifespan(receive, send)
            else:
                await gateway(scope, receive, send)

        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(
                application,
                loop="uvloop",
                http=LimitedHttp,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=2,
            )
        )
        started = threading.Event()

        async def run() -> None:
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started and not serving.done():
                await asyncio.sleep(0.005)
            started.set()
            await serving

        thread = threading.Thread(target=lambda: uvloop.run(run()), daemon=True, name="gateway")
        thread.start()
        assert started.wait(10) and server.started
        serving = Serving(f"http://127.0.0.1:{listener.getsockname()[1]}", gateway, server, thread)
        self._running.append(serving)
        return serving

    def stop(self) -> None:
        for serving in self._running:
            serving.stop()


def settle(serving: Serving) -> None:
    """Wait for two reads of the gateway: the second one has whatever is committed by now."""
    before = serving.gateway.link.reads
    wait_for(lambda: serving.gateway.link.reads >= before + 2)
