"""What the gateway knows follows the database: revocations, new names, outages."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from django.db import connection

from stillhouse.accounts.actions import create_key, revoke_key
from stillhouse.accounts.keys import make_key
from stillhouse.accounts.models import ApiKey
from stillhouse.publishing.actions import publish
from stillhouse.usage.models import UsageRecord
from tests.registry import DEMO_BASE
from tests.waiting import wait_for
from tests.web.gateway.cable import Cable
from tests.web.gateway.house import House, Serve, Serving, gateway_config

ASK: Any = [{"role": "user", "content": "Which clause is this?"}]


def status(serving: Serving, secret: str, model: str = DEMO_BASE) -> int:
    headers = {"authorization": f"Bearer {secret}"}
    body = {"model": model, "messages": ASK}
    return httpx.post(
        f"{serving.url}/v1/chat/completions", headers=headers, json=body, timeout=20
    ).status_code


def reads(serving: Serving) -> int:
    """Snapshots read so far."""
    return serving.gateway.link.reads


def test_a_new_key_works_at_once_and_a_revoked_one_stops(house: House, serving: Serving) -> None:
    key, secret = create_key(by=house.lead, name="second app")
    assert status(serving, secret) == 200
    revoke_key(by=house.lead, key=key)
    wait_for(lambda: status(serving, secret) == 401)
    assert status(serving, house.secret) == 200


def test_a_revocation_acts_even_when_nobody_says_so(house: House, serving: Serving) -> None:
    assert status(serving, house.secret) == 200
    with connection.cursor() as cursor:  # as if the NOTIFY had been lost
        cursor.execute("UPDATE accounts_apikey SET revoked_at = now() WHERE id = %s", [house.key.id])
    wait_for(lambda: status(serving, house.secret) == 401)


def test_thousands_of_unknown_names_cost_a_read_a_second_and_harm_nobody(
    house: House, serving: Serving
) -> None:
    assert status(serving, house.secret) == 200
    before, began = reads(serving), time.monotonic()
    with ThreadPoolExecutor(16) as threads, httpx.Client(timeout=30) as client:

        def unknown(number: int) -> int:
            headers = {"authorization": f"Bearer {house.secret if number % 2 else make_key().secret}"}
            body = {"model": f"no-such-{number}", "messages": ASK}
            return client.post(f"{serving.url}/v1/chat/completions", headers=headers, json=body).status_code

        answers = threads.map(unknown, range(1000))
        assert status(serving, house.secret) == 200
        assert sorted(set(answers)) == [401, 404]
    seconds = time.monotonic() - began
    assert reads(serving) - before <= 2 * seconds + 3


def test_without_postgres_the_last_snapshot_serves_and_records_wait(
    house: House, alias: str, serve: Serve
) -> None:
    with Cable(gateway_config().database_url) as cable:
        serving = serve(gateway_config(database_url=cable.url, database_seconds=2))
        assert status(serving, house.secret, alias) == 200
        wait_for(lambda: UsageRecord.objects.count() == 1)
        cable.cut()
        assert status(serving, house.secret, alias) == 200
        wait_for(lambda: not serving.gateway.link.connected)
        assert status(serving, house.secret, "unknown") == 404
        assert status(serving, house.secret, alias) == 200
        cable.mend()
        wait_for(lambda: UsageRecord.objects.count() == 3)
        publish(by=house.lead, alias_name="afterwards", version=house.held[0])
        assert status(serving, house.secret, "afterwards") == 200


def test_without_any_snapshot_it_says_that_it_is_starting(house: House, serve: Serve) -> None:
    serving = serve(gateway_config(database_url="postgresql://nobody@127.0.0.1:1/none", database_seconds=0.2))
    assert status(serving, house.secret) == 503


def test_records_are_written_when_the_gateway_stops(house: House, serve: Serve) -> None:
    serving = serve(gateway_config(copy_seconds=60))
    assert [status(serving, house.secret) for _ in range(3)] == [200] * 3
    assert UsageRecord.objects.count() == 0
    serving.stop()
    assert UsageRecord.objects.count() == 3


def test_only_the_digest_of_a_key_is_in_the_snapshot(house: House, serving: Serving) -> None:
    snapshot = serving.gateway.link.snapshot
    assert snapshot is not None
    assert set(snapshot.keys) == set(ApiKey.objects.values_list("digest", flat=True))
    assert house.secret not in repr(snapshot)
