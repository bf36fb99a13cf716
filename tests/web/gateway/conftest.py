"""A gateway on real uvicorn over the test database, and people with things to call.

What needs Django is imported inside the fixtures: this file may be read before the settings are there.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from django.conf import settings

from tests.web.gateway.engine import Engine, Script

if TYPE_CHECKING:
    from stillhouse.publishing.models import Alias
    from tests.web.gateway.house import House, Serve, Serving


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(models=set())
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
def house(transactional_db: None, engine: Engine) -> "House":
    from tests.web.gateway.house import make_house  # noqa: PLC0415

    return make_house(engine)


@pytest.fixture
def serve() -> "Iterator[Serve]":
    """Starts gateways; they stop at the end of the test."""
    from tests.web.gateway.house import Servers  # noqa: PLC0415

    servers = Servers()
    yield servers.start
    servers.stop()


@pytest.fixture
def serving(house: "House", serve: "Serve") -> "Serving":
    from tests.web.gateway.house import gateway_config  # noqa: PLC0415

    return serve(gateway_config())


@pytest.fixture
def alias(house: "House") -> str:
    """A published alias of the house."""
    from stillhouse.publishing.actions import publish  # noqa: PLC0415

    version = house.approved()
    return publish(by=house.lead, alias_name="clauses", version=version).alias.name


@pytest.fixture
def stable(house: "House", alias: str) -> "Alias":
    """The same as a row."""
    from stillhouse.publishing.models import Alias  # noqa: PLC0415

    return Alias.objects.get(name=alias)


@pytest.fixture
def remote() -> Iterator[Engine]:
    """Somebody else's service."""
    engine = Engine(models={"big"}, script=Script(text='{"type": "fee"}'))
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
def destinations(remote: Engine, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Where requests may be sent on from this site."""
    monkeypatch.setattr(settings, "ESCALATION_DESTINATIONS", [remote.url])
    return (remote.url,)


@pytest.fixture
def hybrid(
    house: "House", stable: "Alias", remote: Engine, destinations: tuple[str, ...], serve: "Serve"
) -> "Serving":
    """A gateway of an alias that escalates for every hard reason and for the form."""
    from stillhouse.publishing.escalation import start_escalation  # noqa: PLC0415
    from tests.web.gateway.elsewhere import terms  # noqa: PLC0415
    from tests.web.gateway.house import gateway_config  # noqa: PLC0415

    start_escalation(by=house.lead, alias=stable, terms=terms(remote))
    return serve(gateway_config(destinations=destinations))
