"""A change is shown before it is made, by the worker's own code; what was shown is what is made."""

from pathlib import Path

import pytest

from stillhouse.datasets.models import DatasetVersion, Trial
from stillhouse.datasets.trials import start_trial
from stillhouse.erasure.confirming import confirm_erasure
from tests.web.test_dataset_changes import ROWS, checked, inputs, made
from tests.web.test_erasure import everything_stored, over, searched
from tests.world import World
from workers.contract import DeriveSpec, DropContaining, DropDuplicates
from workers.data.derive import derive

pytestmark = pytest.mark.django_db


def tried(world: World, folder: Path) -> Trial:
    """The newest trial after its real job."""
    trial = Trial.objects.select_related("job").latest("created_at")
    worker = world.worker(trial.job)
    worker.claim()
    files = inputs(worker, folder)
    spec = DeriveSpec.model_validate(worker.claim_answer["spec"])
    result = derive(spec, sources=[files["source-0"]], out=folder)
    assert worker.post("finish", {"result": result.model_dump(mode="json")}).status_code == 200
    return trial


def test_a_fix_is_shown_first_and_then_made(world: World, tmp_path: Path) -> None:
    version = checked(world, tmp_path, world.dataset(rows=ROWS))
    client = world.client(world.expert)
    url = f"/w/acme/datasets/{version.dataset_id}/versions/1/"
    page = client.get(url).content.decode()
    assert f'formaction="{url}try/"' in page and "Show first" in page
    trial_page = client.post(url + "try/", {"change": "mask", "kind": ["email"]})["Location"]
    assert "Trying it on every row" in client.get(trial_page).content.decode()
    early = client.post(trial_page, headers={"accept": "application/json"})
    assert (early.status_code, early.json()["error"]["code"]) == (409, "not_tried_yet")
    tried(world, tmp_path)
    shown = client.get(trial_page, headers={"hx-request": "true"}).content.decode()
    assert "jane.doe@example.com" in shown and "[EMAIL]" in shown and "<html" not in shown
    assert "E-mail addresses: " in shown and version.dataset.versions.count() == 1, "nothing is made yet"
    assert client.post(trial_page)["Location"] == url.replace("/1/", "/2/")
    second = made(world, tmp_path, version.dataset.versions.get(number=2))
    assert second.operations == Trial.objects.get().job.spec["operations"] and second.report.valid == 4


def test_the_count_before_is_the_count_after(world: World, tmp_path: Path) -> None:
    version = checked(world, tmp_path, world.dataset(rows=ROWS))
    client = world.client(world.expert)
    url = f"/w/acme/datasets/{version.dataset_id}/versions/1/"
    form = {"change": "filter", "contains": "TENANT", "keep": "drop"}
    trial_page = client.post(url + "try/", form)["Location"]
    trial = tried(world, tmp_path)
    trial.refresh_from_db()
    assert trial.body is not None
    done = trial.body["operations"][0]
    assert (done["rows_in"], done["rows_out"]) == (4, 2)
    assert "left out" in client.get(trial_page).content.decode()
    client.post(trial_page)
    assert made(world, tmp_path, version.dataset.versions.get(number=2)).report.valid == 2


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ({"change": "split", "share": "0.2"}, "not_tried"),
        ({"change": "append", "other": "x"}, "not_tried"),
        ({"change": "drop_overlap", "other": "x"}, "not_tried"),
        ({"change": "drop_containing", "text": "x"}, "unknown_change"),
        ({"change": "filter"}, "nothing_said"),
    ],
)
def test_what_is_not_tried(world: World, tmp_path: Path, form: dict[str, str], code: str) -> None:
    version = checked(world, tmp_path, world.dataset(rows=ROWS))
    answer = world.client(world.expert).post(
        f"/w/acme/datasets/{version.dataset_id}/versions/1/try/", form, headers={"accept": "application/json"}
    )
    assert answer.json()["error"]["code"] == code and not Trial.objects.exists()


def test_what_was_shown_is_forgotten_with_an_erasure(world: World, tmp_path: Path) -> None:
    """In a version whose rows are erased, and in one that stays, for which somebody typed the text."""
    version = checked(world, tmp_path, world.dataset(rows=ROWS))
    clean = checked(world, tmp_path, world.dataset(rows=ROWS[:1], name="Other"))
    client = world.client(world.expert)
    pages = []
    for one, form in (
        (version, {"change": "mask", "kind": ["email"]}),
        (clean, {"change": "filter", "contains": "jane.doe@example.com"}),
    ):
        url = f"/w/acme/datasets/{one.dataset_id}/versions/1/try/"
        pages.append(client.post(url, form)["Location"])
        tried(world, tmp_path)
    assert "jane.doe@example.com" in everything_stored()
    erasure = searched(world, tmp_path)
    confirm_erasure(by=world.lead, erasure=erasure)
    erasure.refresh_from_db()
    for finding in erasure.findings.exclude(made=None):
        assert finding.made is not None
        made(world, tmp_path, finding.made)
    over(erasure)
    assert erasure.state == "erased" and "jane.doe@example.com" not in everything_stored()
    assert [client.get(page).status_code for page in pages] == [200, 404]


def test_a_search_to_erase_is_no_trial_of_these_pages(world: World) -> None:
    version: DatasetVersion = world.dataset()
    mine = start_trial(by=world.expert, version=version, operations=[DropDuplicates()])
    search = start_trial(by=world.expert, version=version, operations=[DropContaining(text="Jane")])
    client = world.client(world.expert)
    assert client.get(f"/w/acme/trials/{mine.pk}/").status_code == 200
    for method in (client.get, client.post):
        answer = method(f"/w/acme/trials/{search.pk}/")
        assert answer.status_code == 404 and b"Jane" not in answer.content
    for place in ("acme", "globex"):
        assert world.client(world.outsider).get(f"/w/{place}/trials/{mine.pk}/").status_code == 404
