"""Tags and comments: hung on a version by its workspace's people, seen by nobody else."""

import pytest

from stillhouse.audit.models import AuditEvent
from stillhouse.core.errors import Conflict, NotFound, UserError
from stillhouse.datasets.actions import record_report
from stillhouse.datasets.models import Comment, DatasetVersion, Tag
from stillhouse.datasets.notes import (
    MOST_TAGS,
    add_comment,
    add_tag,
    clean_tag,
    delete_comment,
    remove_tag,
    tags_in_use,
)
from stillhouse.training.models import RowPreview
from stillhouse.web.views.dataset_notes import with_comments
from tests.registry import available_base
from tests.web.test_dataset_reports import REPORT
from tests.world import World

pytestmark = pytest.mark.django_db


@pytest.fixture
def version(world: World) -> DatasetVersion:
    made = world.dataset()
    record_report(version=made, report=REPORT)
    return made


@pytest.mark.parametrize(
    ("typed", "kept"),
    [("Gold", "gold"), ("  for  Review ", "for-review"), ("2026_q4", "2026-q4"), ("geprüft", "geprüft")],
)
def test_a_tag_is_one_word(typed: str, kept: str) -> None:
    assert clean_tag(typed) == kept


@pytest.mark.parametrize("typed", ["", " ", "-x", "a--b", "a/b", "<b>", "x" * 41, "a\x00b", "😀"])
def test_what_is_no_tag(typed: str) -> None:
    with pytest.raises(UserError) as refused:
        clean_tag(typed)
    assert refused.value.code == "bad_tag"


def test_tags_are_shown_and_filter_the_list(world: World, version: DatasetVersion) -> None:
    client = world.client(world.expert)
    url = f"/w/acme/datasets/{version.dataset_id}/versions/1/"
    assert client.post(url + "tags/", {"tag": "Gold"}).status_code == 302
    client.post(url + "tags/", {"tag": "gold"})
    world.dataset(name="Other rows")
    for page in (url, f"/w/acme/datasets/{version.dataset_id}/", "/w/acme/datasets/"):
        assert "gold" in client.get(page).content.decode(), page
    found = client.get("/w/acme/datasets/", {"tag": "gold"}).content.decode()
    assert "Clauses" in found and "Other rows" not in found
    assert "No version has the tag" in client.get("/w/acme/datasets/", {"tag": "<b>"}).content.decode()
    assert (
        client.post(url + "tags/", {"tag": "a/b"}, headers={"accept": "application/json"}).status_code == 400
    )
    client.post(url + "tags/", {"remove": "gold"})
    client.post(url + "tags/", {"remove": "gold"})
    assert not Tag.objects.exists()
    actions = AuditEvent.objects.filter(object_id=version.pk).values_list("action", flat=True)
    assert [each for each in actions if "tag" in each] == ["dataset.tagged", "dataset.untagged"]


def test_a_version_has_only_so_many_tags(world: World, version: DatasetVersion) -> None:
    for number in range(MOST_TAGS):
        add_tag(by=world.expert, version=version, name=f"t{number}")
    add_tag(by=world.expert, version=version, name="t0")
    with pytest.raises(UserError) as refused:
        add_tag(by=world.expert, version=version, name="more")
    assert refused.value.code == "too_many_tags"


def test_comments_hang_on_their_row_and_are_text(world: World, version: DatasetVersion) -> None:
    client = world.client(world.expert)
    url = f"/w/acme/datasets/{version.dataset_id}/versions/1/comments/"
    seen = f"/w/acme/datasets/{version.dataset_id}/versions/1/as-seen/?row=2#row-2"
    text = "<script>alert(1)</script> The tenant?\r\n{{ x }}"
    made = client.post(url, {"row": "2", "source": "a.jsonl", "text": text, "back": seen})
    assert made["Location"] == seen
    for elsewhere in ("https://evil.example/", "//evil.example/w/acme/datasets/", "/w/globex/datasets/"):
        answer = client.post(url, {"row": "3", "text": "And here", "back": elsewhere})
        assert answer["Location"] == url
    page = client.get(url).content.decode()
    assert "&lt;script&gt;alert(1)" in page and "<script>alert" not in page and "Erin" in page
    assert "4 comments" in client.get(f"/w/acme/datasets/{version.dataset_id}/").content.decode()
    rows = with_comments(version, [{"row": 2, "source": "a.jsonl"}, {"row": 2, "source": ""}, {"row": 3}])
    assert [len(row["comments"]) for row in rows] == [1, 0, 3]
    details = AuditEvent.objects.filter(action="dataset.commented").values_list("details", flat=True)
    assert len(details) == 4 and "tenant" not in str(list(details)), "the trail repeats no text"


def test_a_problem_of_the_report_leads_to_a_comment_on_its_row(world: World, version: DatasetVersion) -> None:
    client = world.client(world.expert)
    url = f"/w/acme/datasets/{version.dataset_id}/versions/1/"
    assert f'href="{url}comments/?row=2"' in client.get(url).content.decode()
    page = client.get(url + "comments/", {"row": "2", "source": 'a".csv'}).content.decode()
    assert 'value="2"' in page and 'value="a&quot;.csv"' in page
    client.post(url + "comments/", {"row": "2", "text": "Ask the author"})
    assert "1 comment<" in client.get(url + "problems/", {"kind": "errors"}).content.decode()


def test_a_row_as_the_model_sees_it_shows_its_comments(world: World, version: DatasetVersion) -> None:
    available_base()
    client = world.client(world.lead)
    url = f"/w/acme/datasets/{version.dataset_id}/versions/1/as-seen/"
    client.get(url)
    row = {"row": 2, "source": "", "samples": []}
    RowPreview.objects.update(body={"rows": [row], "complete": True, "counted": 1})
    add_comment(by=world.expert, version=version, row=2, text="Is this <right>?")
    page = client.get(url).content.decode()
    assert "Is this &lt;right&gt;?" in page and 'id="row-2"' in page and "Comment on this row" in page
    assert "Delete" not in page, "it is somebody else's"


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ({"row": "1", "text": "  "}, "no_comment"),
        ({"row": "1", "text": "x" * 4001}, "comment_too_long"),
        ({"row": "0", "text": "x"}, "bad_row"),
        ({"row": "-1", "text": "x"}, "bad_row"),
        ({"row": "²", "text": "x"}, "bad_row"),
        ({"row": "9" * 16, "text": "x"}, "bad_row"),
        ({"row": "1", "source": "x" * 401, "text": "x"}, "bad_row"),
        ({"text": "x"}, "bad_row"),
    ],
)
def test_what_is_no_comment(world: World, version: DatasetVersion, form: dict[str, str], code: str) -> None:
    url = f"/w/acme/datasets/{version.dataset_id}/versions/1/comments/"
    answer = world.client(world.expert).post(url, form, headers={"accept": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


def test_only_ones_own_comment_is_deleted(world: World, version: DatasetVersion) -> None:
    comment = add_comment(by=world.expert, version=version, row=1, text="Mine")
    url = f"/w/acme/comments/{comment.pk}/delete/"
    refused = world.client(world.lead).post(url, headers={"accept": "application/json"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_yours")
    assert world.client(world.expert).post(url).status_code == 302
    assert not Comment.objects.exists()
    assert world.client(world.expert).post(url).status_code == 404


def test_nothing_is_said_about_an_erased_version(world: World, version: DatasetVersion) -> None:
    add_comment(by=world.expert, version=version, row=1, text="Jane lives here")
    version.erased_at = version.created_at
    version.save()
    with pytest.raises(Conflict):
        add_comment(by=world.expert, version=version, row=1, text="Jane")


def test_another_workspace_touches_nothing(world: World, version: DatasetVersion) -> None:
    comment = add_comment(by=world.expert, version=version, row=1, text="Ours")
    add_tag(by=world.expert, version=version, name="ours")
    for forbidden in (
        lambda: add_tag(by=world.outsider, version=version, name="x"),
        lambda: remove_tag(by=world.outsider, version=version, name="ours"),
        lambda: add_comment(by=world.outsider, version=version, row=1, text="x"),
        lambda: delete_comment(by=world.outsider, comment=comment),
    ):
        with pytest.raises(NotFound):
            forbidden()
    assert tags_in_use(world.outsider) == [] and tags_in_use(world.lead) == [("ours", 1)]
    found = world.client(world.outsider).get("/w/globex/datasets/", {"tag": "ours"}).content.decode()
    assert "Clauses" not in found
