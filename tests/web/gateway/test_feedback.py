"""What apps say about answers: taken with their own key, kept beside kept exchanges and nowhere else."""

import asyncio
import json
from datetime import timedelta
from typing import Any

import httpx
import psycopg
import pytest
from django.utils import timezone

from stillhouse.accounts.actions import create_key
from stillhouse.accounts.grants import make_grant
from stillhouse.accounts.keys import KeyTerms
from stillhouse.gateway import feedback
from stillhouse.gateway.auth import Caller
from stillhouse.gateway.errors import ApiError
from stillhouse.gateway.ledger import Ledger
from stillhouse.gateway.usage import Record
from stillhouse.publishing.keeping import start_keeping, stop_keeping
from stillhouse.publishing.models import Alias
from stillhouse.usage.kept import corrected_answer, feedback_on, forget_expired, kept_of, rated
from stillhouse.usage.models import Feedback, KeptExchange, UsageRecord
from tests.waiting import wait_for
from tests.web.gateway.house import House, Serving, gateway_config, settle

ASK: Any = [{"role": "user", "content": "Which clause is this?"}]


@pytest.fixture
def keeping(house: House, stable: Alias, serving: Serving) -> Serving:
    """A gateway at which the alias's prompts are kept."""
    start_keeping(by=house.lead, alias=stable, days=3)
    settle(serving)
    return serving


def ask(serving: Serving, secret: str) -> str:
    """Ask once; returns the request's id as an app learns it."""
    with serving.client(secret) as client:
        answer = client.chat.completions.with_raw_response.create(model="clauses", messages=ASK)
    request = answer.headers["x-stillhouse-request"]
    wait_for(lambda: UsageRecord.objects.filter(pk=request).exists())
    return str(request)


def say(serving: Serving, secret: str, body: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {secret}"}
    return httpx.post(f"{serving.url}/v1/feedback", json=body, headers=headers, timeout=10)


def test_feedback_and_correction_are_kept_beside_the_exchange(house: House, keeping: Serving) -> None:
    request = ask(keeping, house.secret)
    first = say(keeping, house.secret, {"request_id": request, "rating": "up"})
    assert first.status_code == 202 and first.json() == {
        "object": "feedback",
        "request_id": request,
        "rating": "up",
    }
    wanted = '{"type": "payment"} \x00 <b>😀'
    body = {"request_id": request, "rating": "down", "correction": wanted}
    assert say(keeping, house.secret, body).status_code == 202
    wait_for(lambda: Feedback.objects.filter(request=request, rating="down").exists())
    (exchange,) = kept_of(house.lead, "clauses")
    said = feedback_on(house.lead, [exchange])[exchange.pk]
    assert corrected_answer(said) == wanted, "the last word counts, and nothing is lost of it"
    assert Feedback.objects.count() == 1 and UsageRecord.objects.count() == 1, "feedback is no request"
    assert [one.pk for one in rated(house.lead, "clauses", rating="down", corrected=True)] == [request]
    assert not rated(house.lead, "clauses", rating="up").exists()
    assert not rated(house.outsider, "clauses").exists() and not feedback_on(house.outsider, [exchange])


def test_another_key_says_nothing_about_it(house: House, keeping: Serving) -> None:
    request = ask(keeping, house.secret)
    _, second = create_key(by=house.lead, name="second app")
    body = {"request_id": request, "rating": "down", "correction": "mine"}
    for secret in (second, house.outsider_secret):
        assert say(keeping, secret, body).status_code == 202, "nobody learns what exists"
    assert say(keeping, house.secret, {"request_id": request, "rating": "up"}).status_code == 202
    wait_for(Feedback.objects.exists)
    (said,) = Feedback.objects.all()
    assert (said.caller, said.rating, said.correction) == (house.key.pk, "up", "")


def test_nothing_is_kept_where_prompts_are_not(house: House, stable: Alias, serving: Serving) -> None:
    request = ask(serving, house.secret)
    assert say(serving, house.secret, {"request_id": request, "rating": "up"}).status_code == 202
    ask(serving, house.secret)  # copied after it
    assert not Feedback.objects.exists()


def test_feedback_ends_with_its_exchange(house: House, keeping: Serving, stable: Alias) -> None:
    request = ask(keeping, house.secret)
    say(keeping, house.secret, {"request_id": request, "rating": "up"})
    wait_for(Feedback.objects.exists)
    stop_keeping(by=house.lead, alias=stable)
    assert not rated(house.lead, "clauses").exists()
    assert forget_expired() == 1 and not Feedback.objects.exists()


async def spool_and_copy(lines: list[bytes], records: list[Record]) -> int:
    """What a gateway does with them; returns how many Postgres refused."""
    ledger = Ledger(gateway_config())
    await ledger.start()
    for each in lines:
        assert ledger.note(each)
    for record in records:
        ledger.end(record)
    url = gateway_config().database_url
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await ledger.flush(connection)
    await ledger.stop()
    return ledger.refused


def line(house: House, request: str, caller: str = "", **changes: Any) -> bytes:
    said = feedback.Feedback(request, "up", None)
    row = json.loads(said.line(Caller(caller or house.key.pk, house.lead.workspace_id)))
    return json.dumps(row | changes, separators=(",", ":")).encode()


def test_it_may_come_before_its_exchange_and_after_a_bad_one(house: House, stable: Alias) -> None:
    """Two gateways: the one that answered was away from Postgres when the other one copied."""
    start_keeping(by=house.lead, alias=stable, days=3)
    lines = [line(house, "req_1"), line(house, "req_1", "key_other"), line(house, "req_2", rating=None)]
    assert asyncio.run(spool_and_copy(lines, [])) == 1
    callers = sorted(Feedback.objects.values_list("caller", flat=True))
    assert callers == sorted([house.key.pk, "key_other"]), "whose answer it was shows later"

    workspace, now = house.lead.workspace, timezone.now()
    record = Record(id="req_1", workspace_id=workspace.pk, caller=house.key.pk, alias="clauses", served="x")
    assert asyncio.run(spool_and_copy([], [record])) == 0
    KeptExchange.objects.create(
        pk="req_1",
        workspace=workspace,
        alias="clauses",
        served="x",
        prompt="[]",
        answers="[]",
        at=now,
        expires_at=now + timedelta(days=1),
    )
    said = feedback_on(house.lead, kept_of(house.lead, "clauses"))["req_1"]
    assert said.caller == house.key.pk, "what another key said does not count"

    Feedback.objects.create(request="req_never", workspace=workspace, caller="k", rating="up", at=now)
    Feedback.objects.update(at=now - timedelta(hours=2))
    forget_expired()
    assert not Feedback.objects.filter(request="req_never").exists()
    assert feedback_on(house.lead, kept_of(house.lead, "clauses"))


def test_it_never_pushes_usage_off_the_disk(house: House) -> None:
    """Postgres is away, and an app goes on saying things."""
    request = Record(id="req_1", workspace_id=house.lead.workspace_id, caller=house.key.pk, served="x")

    async def away() -> tuple[int, bool, int]:
        ledger = Ledger(gateway_config(spool_bytes=64 * 1024))
        await ledger.start()
        ledger.end(request)
        said = feedback.Feedback("req_1", "down", "x" * 1000).line(Caller("k", house.lead.workspace_id))
        taken = sum(ledger.note(said) for _ in range(200))
        ledger.end(request)
        lost, still = ledger.lost, ledger.note(said)
        await ledger.stop()
        return taken, still, lost

    taken, still, lost = asyncio.run(away())
    assert 20 <= taken <= 32 and not still and lost == 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"rating": "up"}, "request_id"),
        ({"request_id": "req_'; --", "rating": "up"}, "request_id"),
        ({"request_id": "run_1", "rating": "up"}, "request_id"),
        ({"request_id": "req_1", "rating": "great"}, "rating"),
        ({"request_id": "req_1", "rating": ["up"]}, "rating"),
        ({"request_id": "req_1", "rating": "up", "correction": {"a": 1}}, "correction"),
        ({"request_id": "req_1", "rating": "up", "correction": "x" * 65_537}, "correction"),
        ({"request_id": "req_1", "rating": "up", "user": "me"}, "user"),
    ],
)
def test_what_is_no_feedback_is_refused_by_its_field(body: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        feedback.parse_feedback(json.dumps(body).encode())
    assert (refused.value.status, refused.value.param) == (400, param)


def test_who_may_not_and_how(house: House, keeping: Serving) -> None:
    body = {"request_id": "req_1", "rating": "up"}
    grant = make_grant(workspace_id=house.lead.workspace_id, caller="job_1", models=["clauses"], seconds=60)
    assert say(keeping, grant, body).json()["error"]["code"] == "key_needed"
    assert say(keeping, "sk-sh-nothing", body).status_code == 401
    _, lists_only = create_key(by=house.lead, name="lists", terms=KeyTerms(scopes=frozenset({"models"})))
    wait_for(lambda: say(keeping, lists_only, body).status_code == 403)
    _, slow = create_key(by=house.lead, name="slow", terms=KeyTerms(requests_per_minute=1))
    wait_for(lambda: say(keeping, slow, body).status_code == 429)  # it counts as a request
    wrong = httpx.get(f"{keeping.url}/v1/feedback", headers={"authorization": f"Bearer {house.secret}"})
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
