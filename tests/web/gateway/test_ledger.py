"""Every request is in the ledger once: through outages of Postgres, a full disk and a killed gateway."""

import os
from pathlib import Path
from typing import Any

import psycopg

from stillhouse.gateway.config import GatewayConfig
from stillhouse.gateway.inflight import Inflight, read_inflight
from stillhouse.gateway.ledger import Ledger
from stillhouse.gateway.spool import Spool, read_segment
from stillhouse.gateway.usage import Record
from stillhouse.usage.models import UsageHour, UsageRecord
from tests.registry import DEMO_BASE
from tests.waiting import wait_for
from tests.web.gateway.cable import Cable
from tests.web.gateway.engine import Script
from tests.web.gateway.house import House, Serve, Serving, gateway_config
from tests.web.gateway.process import kill_in_the_middle, uvicorn

ASK: Any = [{"role": "user", "content": "Which clause is this?"}]


def spool(home: Path, **limits: int) -> Spool:
    made = Spool(home, **{"max_bytes": 1 << 20, "max_waiting": 3, **limits})
    made.open()
    return made


def record(house: House, number: int, **fields: Any) -> Record:
    return Record(
        id=f"req_{number}", workspace_id=house.expert.workspace_id, caller="key_1", served="x", **fields
    )


async def copy(ledger: Ledger) -> None:
    url = gateway_config().database_url
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await ledger.flush(connection)


async def test_a_record_is_copied_once_and_a_bad_one_holds_nobody_up(house: House) -> None:
    ledger = Ledger(gateway_config())
    await ledger.start()
    for number in (1, 2, 2):
        ledger.end(record(house, number, prompt_tokens=10, completion_tokens=5, key="key_1"))
    ledger.end(Record(id="req_bad", workspace_id="ws_nobody", caller="key_1"))
    await copy(ledger)
    ledger.end(record(house, 1, prompt_tokens=10, completion_tokens=5, key="key_1"))
    await copy(ledger)
    await ledger.stop()
    async with await psycopg.AsyncConnection.connect(gateway_config().database_url) as connection:
        rows = await (await connection.execute("SELECT id FROM usage_usagerecord ORDER BY id")).fetchall()
        [hour] = await (
            await connection.execute("SELECT requests, prompt_tokens, completion_tokens FROM usage_usagehour")
        ).fetchall()
    assert rows == [("req_1",), ("req_2",)]
    assert hour == (2, 20, 10)
    assert (ledger.refused, ledger.copied) == (1, {"key_1": 30})


async def test_hours_that_piled_up_are_copied_in_full(house: House) -> None:
    ledger = Ledger(gateway_config())
    await ledger.start()
    for number in range(1201):
        ledger.end(record(house, number, completion_tokens=1))
    await copy(ledger)
    assert ledger.bytes_waiting == 0
    await ledger.stop()
    async with await psycopg.AsyncConnection.connect(gateway_config().database_url) as connection:
        cursor = await connection.execute("SELECT sum(requests), sum(completion_tokens) FROM usage_usagehour")
        assert await cursor.fetchone() == (1201, 1201)


def test_a_torn_or_changed_line_is_left_out(tmp_path: Path) -> None:
    mine = spool(tmp_path)
    for line in (b'{"id":"a"}', b'{"id":"b"}', b'{"id":"c"}'):
        mine.append(line)
    mine.seal()
    segment = mine.oldest()
    assert segment is not None
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-5])
    assert list(read_segment(segment)) == [b'{"id":"a"}', b'{"id":"b"}']
    segment.write_bytes(whole.replace(b'"b"', b'"x"'))
    assert list(read_segment(segment)) == [b'{"id":"a"}', b'{"id":"c"}']


def test_the_spool_is_bounded_and_the_oldest_goes_first(tmp_path: Path) -> None:
    mine = spool(tmp_path, max_bytes=200)
    for number in range(6):
        mine.append(b"%020d" % number * 4)
        mine.seal()
    oldest = mine.oldest()
    assert oldest is not None
    assert mine.bytes_waiting <= 200 and mine.lost == 4
    assert list(read_segment(oldest)) == [b"%020d" % 4 * 4]


def test_a_disk_that_takes_nothing_leaves_the_last_records_in_memory(tmp_path: Path) -> None:
    mine = spool(tmp_path)
    mine.append(b"first")
    mine.seal()
    folder = next(path for path in tmp_path.iterdir())
    folder.rename(tmp_path / ".new-away")  # the next segment cannot be made
    for number in range(5):
        mine.append(b"%d" % number)
    assert (list(mine.waiting), mine.lost) == ([b"2", b"3", b"4"], 2)
    (tmp_path / ".new-away").rename(folder)
    mine.append(b"again")
    mine.seal()
    assert len(mine.waiting) == 3


def test_a_folder_in_use_is_nobody_elses(tmp_path: Path) -> None:
    first, second = spool(tmp_path), spool(tmp_path)
    first.append(b'{"id":"a"}')
    assert list(second.orphans()) == []
    os.close(first._lock)  # what the kernel does when a process is killed
    [orphan] = second.orphans()
    assert orphan.lines() == [b'{"id":"a"}']
    assert list(spool(tmp_path).orphans()) == []
    orphan.remove()
    orphan.release()
    assert list(second.orphans()) == []


def test_the_table_of_requests_in_flight_keeps_their_counts(tmp_path: Path) -> None:
    table = Inflight.create(tmp_path / "inflight")
    first, second = table.take(b'{"id":"a"}'), table.take(b'{"id":"b"}')
    assert first and second
    first.count(7, 40, 12)
    table.give(second)
    [line] = read_inflight(tmp_path / "inflight")
    assert line == b'{"id":"a","prompt_tokens":7,"completion_tokens":40,"reasoning_tokens":12}'
    assert table.take(b"x" * 2000) is None
    assert (
        len([table.take(b"{}") for _ in range(2050)]) == 2050
    )  # more than there is room for: without a slot


def test_a_killed_gateway_loses_no_request(house: House, alias: str, tmp_path: Path) -> None:
    house.engine.script = Script(text="abcdef")
    headers = {"authorization": f"Bearer {house.secret}"}
    body = {"model": alias, "messages": ASK}
    with Cable(gateway_config().database_url) as cable:
        with uvicorn(DATABASE_URL=cable.url, SPOOL_DIR=str(tmp_path)) as server:
            ask = server.client.post
            assert ask("/v1/chat/completions", headers=headers, json=body).status_code == 200
            cable.cut()
            for _ in range(20):
                assert ask("/v1/chat/completions", headers=headers, json=body).status_code == 200
            house.engine.script = Script(text="x" * 500, piece=1, pause=0.02)
            kill_in_the_middle(server, headers=headers, body={**body, "stream": True})
        wait_for(lambda: house.engine.aborted == 1)
    assert UsageRecord.objects.count() <= 1
    with uvicorn(SPOOL_DIR=str(tmp_path)):
        wait_for(lambda: UsageRecord.objects.count() == 22)
    assert UsageRecord.objects.filter(status=200, completion_tokens=6).count() == 21
    killed = UsageRecord.objects.get(status=0)
    assert 15 <= killed.completion_tokens <= house.engine.sent
    assert killed.served == house.held[0].serving_name and killed.prompt_tokens == 7
    assert sum(UsageHour.objects.values_list("requests", flat=True)) == 22
    assert list(tmp_path.iterdir()) == []


def test_a_record_names_key_alias_version_and_reasoning(house: House, alias: str, serving: Serving) -> None:
    house.engine.script = Script(text="<think>12345</think>67890", piece=1)
    with serving.client(house.secret) as client:
        client.chat.completions.create(model=alias, messages=ASK)
        list(client.chat.completions.create(model=alias, messages=ASK, stream=True))
        client.chat.completions.create(model=DEMO_BASE, messages=ASK)
    wait_for(lambda: UsageRecord.objects.count() == 3)
    whole, streamed, base = UsageRecord.objects.order_by("at")
    version = house.held[0]
    for row in (whole, streamed):
        assert (row.key, row.alias, row.version) == (house.key.id, alias, version.id)
        assert row.completion_tokens == 25
    assert whole.reasoning_tokens == 12  # half of the characters that are no tags
    assert streamed.reasoning_tokens == 13  # from the last character of the one tag to that of the other
    assert (base.alias, base.version, base.served) == ("", "", DEMO_BASE)


def test_what_the_app_got_is_in_the_sums_of_its_hours(house: House, alias: str, serve: Serve) -> None:
    config: GatewayConfig = gateway_config(copy_seconds=0.05)
    serving = serve(config)
    house.engine.script = Script(text="abc")
    with serving.client(house.secret) as client:
        for _ in range(12):
            client.chat.completions.create(model=alias, messages=ASK)
    wait_for(lambda: UsageRecord.objects.count() == 12)
    hours = UsageHour.objects.all()
    assert {hour.alias for hour in hours} == {alias} and {hour.key for hour in hours} == {house.key.id}
    assert sum(hour.requests for hour in hours) == 12
    assert sum(hour.completion_tokens for hour in hours) == 36
    assert sum(hour.failed + hour.cancelled for hour in hours) == 0
