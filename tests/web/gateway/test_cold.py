"""Versions that no replica has loaded: a request asks for them and waits a moment, bounded in every way."""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest

from stillhouse.adapters.models import AdapterVersion
from stillhouse.serving.actions import place_version
from stillhouse.serving.models import Placement
from stillhouse.usage.models import UsageRecord
from tests import registry
from tests.waiting import wait_for
from tests.web.gateway.house import House, Serve, Serving, gateway_config

ASK: Any = [{"role": "user", "content": "Which clause is this?"}]
LONG = 20.0


@pytest.fixture
def cold(house: House) -> AdapterVersion:
    """Approved and placed, and on no replica."""
    version = registry.approved(house.expert, house.lead, adapter_name="rarely-used")
    place_version(version=version)
    return version


def ask(serving: Serving, secret: str, version: AdapterVersion, seconds: float = LONG) -> httpx.Response:
    return httpx.post(
        f"{serving.url}/v1/chat/completions",
        headers={"authorization": f"Bearer {secret}"},
        json={"model": version.serving_name, "messages": ASK},
        timeout=seconds,
    )


def load(house: House, version: AdapterVersion) -> None:
    """The agent has loaded it, and says so."""
    house.held.append(version)
    house.engine.models.add(version.serving_name)
    house.report()


def loads(serving: Serving, version: AdapterVersion) -> bool:
    """Whether the gateway has heard that a replica is loading it."""
    snapshot = serving.gateway.link.snapshot
    return snapshot is not None and snapshot.versions[version.serving_name].loading


def asked_for(version: AdapterVersion) -> bool:
    return Placement.objects.filter(version=version, wanted_at__isnull=False).exists()


def test_a_request_for_a_cold_version_asks_for_it_and_waits(
    house: House, cold: AdapterVersion, serve: Serve
) -> None:
    serving = serve(gateway_config(cold_seconds=LONG))
    with ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(ask, serving, house.secret, cold) for _ in range(3)]
        wait_for(lambda: asked_for(cold))
        assert not any(answer.done() for answer in answers)
        load(house, cold)
        got = [answer.result() for answer in answers]
    assert [answer.status_code for answer in got] == [200] * 3
    assert {answer.json()["model"] for answer in got} == {cold.serving_name}
    wait_for(lambda: UsageRecord.objects.filter(version=cold.id).count() == 3)


@pytest.mark.parametrize(
    ("state", "seconds"), [("loading", 2), ("nowhere", 5), ("failed", None), ("no engine", 30)]
)
def test_when_to_come_back_depends_on_what_the_replicas_do(
    house: House, cold: AdapterVersion, serve: Serve, state: str, seconds: int | None
) -> None:
    if state in ("loading", "failed"):
        house.report(held=[registry.held(cold, state)])
    else:
        house.report(healthy=state != "no engine")
    answer = ask(serve(gateway_config(cold_seconds=0.1)), house.secret, cold)
    error = answer.json()["error"]
    assert answer.status_code == 503
    assert error["code"] == ("model_loading" if seconds else "model_unavailable")
    assert answer.headers.get("retry-after") == (str(seconds) if seconds else None)
    assert not house.engine.seen


def test_only_so_many_wait(house: House, cold: AdapterVersion, serve: Serve) -> None:
    serving = serve(gateway_config(cold_seconds=LONG, max_cold_requests=2))
    with ThreadPoolExecutor(2) as threads:
        waiting: list[Future[httpx.Response]] = [
            threads.submit(ask, serving, house.secret, cold) for _ in range(2)
        ]
        wait_for(lambda: serving.gateway.cold.waiting == 2)
        assert ask(serving, house.secret, cold).status_code == 503
        assert not any(answer.done() for answer in waiting)
        load(house, cold)
        assert [answer.result().status_code for answer in waiting] == [200, 200]
    assert serving.gateway.cold.waiting == 0


def test_an_app_that_goes_away_waits_no_longer(house: House, cold: AdapterVersion, serve: Serve) -> None:
    serving = serve(gateway_config(cold_seconds=LONG))
    with suppress(httpx.ReadTimeout):
        ask(serving, house.secret, cold, seconds=0.3)
    wait_for(lambda: serving.gateway.cold.waiting == 0)
    load(house, cold)
    assert ask(serving, house.secret, cold).status_code == 200
    assert len(house.engine.seen) == 1


def test_what_is_published_waits_out_a_restart_of_the_engine(house: House, alias: str, serve: Serve) -> None:
    serving, [version] = serve(gateway_config(cold_seconds=LONG)), house.held
    with ThreadPoolExecutor(1) as threads:
        house.report(held=[registry.held(version, "loading")], incarnation="second")
        wait_for(lambda: loads(serving, version))
        answer = threads.submit(ask, serving, house.secret, version)
        wait_for(lambda: serving.gateway.cold.waiting == 1)
        house.report(incarnation="second")
        assert answer.result().status_code == 200


def test_nobody_else_can_have_it_loaded(house: House, cold: AdapterVersion, serve: Serve) -> None:
    assert ask(serve(gateway_config()), house.outsider_secret, cold).status_code == 404
    AdapterVersion.objects.filter(pk=cold.pk).update(state="retired")
    assert ask(serve(gateway_config()), house.secret, cold).status_code == 403
    assert not asked_for(cold)
