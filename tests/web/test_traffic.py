"""Rows from app traffic: looked through, corrected, uploaded and checked like any file."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from stillhouse.accounts.models import Membership
from stillhouse.audit.models import AuditEvent
from stillhouse.core import blobs
from stillhouse.core.errors import NotFound, UserError
from stillhouse.datasets.models import Dataset, DatasetVersion, TrafficSource, Upload
from stillhouse.datasets.traffic import Pick, append_to, exchanges, make_from_traffic
from stillhouse.publishing.actions import publish
from stillhouse.publishing.keeping import start_keeping
from stillhouse.publishing.models import Alias
from stillhouse.usage.kept import forget_kept, kept_of
from stillhouse.usage.models import Feedback, KeptExchange, UsageRecord
from tests.registry import approved, make_ready
from tests.web.test_dataset_changes import checked, made
from tests.world import World, fetch

pytestmark = pytest.mark.django_db
ASKED = [{"role": "user", "content": "Which clause is this?\r\n<b>Fees</b>"}]


@pytest.fixture
def alias(world: World) -> Alias:
    version = approved(world.expert, world.lead)
    make_ready(version)
    alias = publish(by=world.lead, alias_name="clauses", version=version).alias
    start_keeping(by=world.lead, alias=alias, days=3)
    return alias


def keep(
    by: Membership,
    number: int,
    answer: str = "payment",
    *,
    reasoning: str = "It speaks of fees.",
    prompt: Any = ASKED,
    alias: str = "clauses",
    rating: str = "",
    correction: str = "",
) -> str:
    """An exchange as the gateway keeps it, with what its app said."""
    request, at = f"req_{by.workspace.slug}{number}", timezone.now() - timedelta(minutes=60 - number)
    UsageRecord.objects.create(
        pk=request, workspace=by.workspace, caller="key_1", model=alias, at=at, status=200, total_ms=1
    )
    KeptExchange.objects.create(
        pk=request,
        workspace=by.workspace,
        alias=alias,
        served="clauses@abc",
        prompt=json.dumps(prompt),
        answers=json.dumps([{"content": answer, "reasoning": reasoning}]),
        at=at,
        expires_at=at + timedelta(days=1),
    )
    if rating:
        Feedback.objects.create(
            request=request,
            workspace=by.workspace,
            caller="key_1",
            rating=rating,
            correction=json.dumps(correction) if correction else "",
            at=at,
        )
    return request


def rows_of(version: DatasetVersion) -> list[dict[str, Any]]:
    return [json.loads(line) for line in fetch(blobs.get_url(version.sha256)).decode().splitlines()]


def test_ticked_exchanges_become_a_version_with_its_origin(
    world: World, alias: Alias, tmp_path: Path
) -> None:
    as_it_was = keep(world.lead, 1, 'two\r\nlines "quoted"')
    app_said = keep(world.lead, 2, "wrong", rating="down", correction="liability")
    expert_says = keep(world.lead, 3, "also wrong", rating="up")
    keep(world.lead, 4, "not ticked")
    client = world.client(world.expert)
    url = f"/w/acme/aliases/{alias.pk}/traffic/"
    page = client.get(url).content.decode()
    assert "&lt;b&gt;Fees" in page and "<b>Fees" not in page and "The app’s correction" in page
    form = {
        "take": [expert_says, as_it_was, app_said],
        f"answer-{as_it_was}": 'two\nlines "quoted"',
        f"reasoning-{as_it_was}": "It speaks of fees.",
        f"answer-{app_said}": "liability",
        f"reasoning-{app_said}": "",
        f"answer-{expert_says}": "termination\r\nat once",
        f"reasoning-{expert_says}": "It ends the contract.",
        "name": "From the field",
    }
    assert client.post(url, form).status_code == 302
    version = DatasetVersion.objects.get(dataset__name="From the field")
    rows = rows_of(version)
    assert [row["messages"][-1]["content"] for row in rows] == [
        'two\r\nlines "quoted"',  # what only the browser changed is not changed
        "liability",
        "termination\nat once",
    ]
    assert [row["messages"][-1].get("reasoning_content") for row in rows] == [
        "It speaks of fees.",
        None,
        "It ends the contract.",
    ]
    assert rows[0]["messages"][:-1] == ASKED and [row["corrected"] for row in rows] == [False, True, True]
    assert [row["request"] for row in rows] == [as_it_was, app_said, expert_says]
    source = TrafficSource.objects.get()
    assert (source.alias, source.count, source.corrected) == ("clauses", 3, 2)
    assert source.first_at < source.last_at

    version = checked(world, tmp_path, version)
    assert (version.report.valid, version.report.error_count) == (3, 0), version.report.body["errors"]
    assert version.report.body["doctor"]["personal"] == {}, "ids of requests are nobody's data"
    shown = client.get(f"/w/acme/datasets/{version.dataset_id}/versions/1/").content.decode()
    assert "Made from app traffic" in shown and "corrected" in shown
    assert "taken into From the field v1" in client.get(url).content.decode()
    event = AuditEvent.objects.get(action="dataset.made_from_traffic")
    assert event.details == {"alias": "clauses", "exchanges": 3, "corrected": 2}


def test_they_are_added_to_an_existing_version(world: World, alias: Alias, tmp_path: Path) -> None:
    before = checked(world, tmp_path, world.dataset(name="Mine"))
    request = keep(world.lead, 1)
    client = world.client(world.expert)
    form = {"take": request, "into": before.dataset_id}
    answer = client.post(f"/w/acme/aliases/{alias.pk}/traffic/", form)
    url = f"/w/acme/datasets/{before.dataset_id}/versions/"
    assert answer["Location"] == url + "2/"
    second = checked(world, tmp_path, before.dataset.versions.get(number=2))
    assert second.report.valid == 1
    page = client.get(url + "2/").content.decode()
    assert "Add these rows to" in page and page.index(">Mine v1 ") < page.index("</select>")
    assert client.post(url + "2/append-to/", {"target": before.pk})["Location"] == url + "3/"
    third = made(world, tmp_path, before.dataset.versions.get(number=3))
    assert third.report.valid == before.report.valid + 1
    assert [source.parent for source in third.sources.all()] == [before, second]
    refused = client.post(url + "1/append-to/", {"target": second.pk}, headers={"accept": "application/json"})
    assert refused.json()["error"]["code"] == "not_from_traffic"
    again = client.post(f"/w/acme/aliases/{alias.pk}/traffic/", form, headers={"accept": "application/json"})
    assert again.json()["error"]["code"] == "same_content" and TrafficSource.objects.count() == 1


def test_only_some_are_shown(world: World, alias: Alias) -> None:
    keep(world.lead, 1, "fine answer", rating="up")
    keep(world.lead, 2, "poor answer", rating="down")
    keep(world.lead, 3, "mended answer", rating="down", correction="better")
    keep(world.lead, 4, "plain answer")
    keep(world.lead, 5, "other alias", alias="else")
    expected = {
        "": {"fine", "poor", "mended", "plain"},
        "rated": {"fine", "poor", "mended"},
        "up": {"fine"},
        "down": {"poor", "mended"},
        "corrected": {"mended"},
        "nonsense": {"fine", "poor", "mended", "plain"},
    }
    client = world.client(world.expert)
    for shown, answers in expected.items():
        page = client.get(f"/w/acme/aliases/{alias.pk}/traffic/", {"show": shown}).content.decode()
        assert {word for word in ("fine", "poor", "mended", "plain", "other") if word in page} == answers, (
            shown
        )


def test_a_whole_list_is_taken_across_pages(
    world: World, alias: Alias, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse.web.views.traffic.PAGE", 2)
    for number in range(1, 6):
        keep(world.lead, number, "no", rating="down", correction=f"right {number}")
    keep(world.lead, 6, "", rating="down")
    keep(world.lead, 7, "fine", rating="up")
    client = world.client(world.expert)
    url = f"/w/acme/aliases/{alias.pk}/traffic/"
    assert "Take the newest" in client.get(url, {"show": "down"}).content.decode()
    assert "Take the newest" not in client.get(url, {"show": "up"}).content.decode()
    form = {"all": "1", "show": "down", "name": "All bad", "take": "req_acme7", "answer-req_acme5": "mended"}
    assert client.post(url, form).status_code == 302
    rows = rows_of(DatasetVersion.objects.get(dataset__name="All bad"))
    answers = [row["messages"][-1]["content"] for row in rows]
    assert answers == ["right 1", "right 2", "right 3", "right 4", "mended"]
    assert client.post(url, {"all": "1", "show": "corrected", "into": "x"}).status_code == 404
    KeptExchange.objects.exclude(pk="req_acme6").delete()
    refused = client.post(url, {"all": "1", "name": "None"}, headers={"accept": "application/json"})
    assert refused.json()["error"]["code"] == "empty_answer"


def test_every_kind_of_prompt_is_read(world: World, alias: Alias) -> None:
    parts = [{"type": "text", "text": "Part one, "}, {"type": "text", "text": "part two"}]
    system = {"role": "system", "content": "Be brief."}
    keep(world.lead, 1, prompt="A bare text")
    keep(world.lead, 2, prompt=[system, {"role": "user", "content": parts, "name": None}])
    keep(world.lead, 3, prompt=["one", "two"])
    keep(world.lead, 4, "", prompt="Call a tool")
    third, second, first = list(exchanges(world.lead, kept_of(world.lead, "clauses")))[1:]
    assert first.messages == [{"role": "user", "content": "A bare text"}]
    assert second.messages == [system, {"role": "user", "content": "Part one, part two"}]
    assert third.messages == []
    for number, code in ((3, "not_text"), (4, "empty_answer")):
        with pytest.raises(UserError) as refused:
            make_from_traffic(by=world.expert, alias="clauses", picks=[Pick(f"req_acme{number}")], name="X")
        assert refused.value.code == code
    assert not Dataset.objects.filter(name="X").exists() and not Upload.objects.filter(version=None).exists()


def test_what_cannot_be_made_is_said(world: World, alias: Alias) -> None:
    request = keep(world.lead, 1)
    url = f"/w/acme/aliases/{alias.pk}/traffic/"

    def post(form: dict[str, Any]) -> str:
        answer = world.client(world.expert).post(url, form, headers={"accept": "application/json"})
        return str(answer.json()["error"]["code"])

    assert post({"name": "X"}) == "nothing_chosen"
    assert post({"take": request, "name": ""}) == "bad_name"
    assert post({"take": [request, "req_gone"], "name": "X"}) == "exchange_gone"
    assert post({"take": request, f"answer-{request}": "  ", "name": "X"}) == "empty_answer"
    assert post({"take": request, "into": "ds_nothing"}) == "not_found"
    KeptExchange.objects.update(expires_at=timezone.now())
    assert post({"take": request, "name": "X"}) == "exchange_gone"
    assert not Dataset.objects.filter(name="X").exists()


def test_another_workspace_sees_and_takes_nothing(world: World, alias: Alias) -> None:
    request = keep(world.lead, 1, "our secret")
    theirs = keep(world.outsider, 1, "their secret")
    url = f"aliases/{alias.pk}/traffic/"
    for place in ("acme", "globex"):
        for answer in (
            world.client(world.outsider).get(f"/w/{place}/{url}"),
            world.client(world.outsider).post(f"/w/{place}/{url}", {"take": request, "name": "X"}),
        ):
            assert answer.status_code == 404 and b"our secret" not in answer.content
    assert b"their secret" not in world.client(world.lead).get(f"/w/acme/{url}").content
    mine = world.dataset(name="Mine")
    with pytest.raises(UserError) as refused:
        make_from_traffic(by=world.expert, alias="clauses", picks=[Pick(theirs)], dataset=mine.dataset)
    assert refused.value.code == "exchange_gone"
    with pytest.raises(NotFound):
        make_from_traffic(by=world.outsider, alias="clauses", picks=[Pick(theirs)], dataset=mine.dataset)
    made_here = make_from_traffic(by=world.expert, alias="clauses", picks=[Pick(request)], name="Here")
    with pytest.raises(NotFound):
        append_to(by=world.outsider, version=made_here, target=mine)


def test_what_holds_an_erased_text_goes_with_its_feedback(world: World, alias: Alias) -> None:
    asked = keep(world.lead, 1, prompt='Letter to "Jürgen" MÜLLER', rating="up")
    answered = keep(world.lead, 2, "Müller\tpays")
    corrected = keep(world.lead, 3, rating="down", correction="It is müller")
    stays = keep(world.lead, 4, "Miller pays", rating="up")
    theirs = keep(world.outsider, 1, "Müller", rating="up")
    assert forget_kept(world.lead.workspace, "müller") == 2
    left = set(KeptExchange.objects.values_list("pk", flat=True))
    assert left == {corrected, stays, theirs} and not {asked, answered} & left
    said = set(Feedback.objects.values_list("request", flat=True))
    assert said == {stays, theirs}, "a correction goes, what it corrected need not"
    assert forget_kept(world.lead.workspace, '"type"') == 0


def test_the_page_says_when_nothing_is_kept(world: World) -> None:
    version = approved(world.expert, world.lead)
    make_ready(version)
    quiet = publish(by=world.lead, alias_name="quiet", version=version).alias
    page = world.client(world.expert).get(f"/w/acme/aliases/{quiet.pk}/traffic/").content.decode()
    assert "Nothing is kept" in page
