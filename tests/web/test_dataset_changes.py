"""Versions made from versions, with the worker's own code for what happens to the rows."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from stillhouse.catalog.models import BaseModel
from stillhouse.core.errors import Conflict, NotFound
from stillhouse.datasets.actions import create_dataset
from stillhouse.datasets.deriving import derive_version
from stillhouse.datasets.models import Comparison, DatasetVersion
from stillhouse.datasets.uploading import start_upload
from stillhouse.training.actions import start_run
from stillhouse.training.models import RowPreview
from tests.registry import available_base
from tests.workers.training.tiny import make_base
from tests.world import Worker, World, chat_row, fetch, jsonl
from workers.contract import (
    CompareSpec,
    DeriveSpec,
    DropDuplicates,
    DropOverlap,
    Message,
    PreviewSpec,
    ValidateSpec,
)
from workers.contract.weights import template_sha256
from workers.data.limited import compare_in_child, derive_in_child, validate_in_child
from workers.training.preview import preview

pytestmark = pytest.mark.django_db
ROWS = [
    chat_row("Who pays?", "The tenant pays."),
    chat_row("Who pays?", "The tenant pays."),
    chat_row("Write to whom?", "Write to jane.doe@example.com before May."),
    chat_row("How long is the notice period?", "It is three months to the end of a quarter."),
]


def contents(worker: Worker) -> dict[str, bytes]:
    """The job's files by name, fetched as a worker does."""
    return {file["name"]: fetch(file["url"]) for file in worker.claim_answer["inputs"]}


def numbered(files: dict[str, bytes], name: str) -> tuple[bytes, ...]:
    """`other-0`, `other-1` and so on."""
    return tuple(files[each] for each in sorted(files) if each.startswith(f"{name}-"))


def inputs(worker: Worker, folder: Path) -> dict[str, Path]:
    """The same, in a folder."""
    found = contents(worker)
    return dict(zip(found, written(folder, *found.values()), strict=True))


def finish(worker: Worker, result: Message, rows: bytes) -> None:
    files = worker.send_files({"rows.parquet": rows})
    answer = worker.post("finish", {"result": result.model_dump(mode="json"), "files": files})
    assert answer.status_code in (200, 204), answer.content


@cache
def check_of(spec: str, data: bytes, others: tuple[bytes, ...]) -> tuple[Message, bytes]:
    """What the worker's real check says of these bytes, and its good rows; the same are checked once only."""
    with TemporaryDirectory() as name:
        file, *beside = written(Path(name), data, *others)
        rows = Path(name) / "rows.parquet"
        asked = ValidateSpec.model_validate_json(spec)
        return validate_in_child(file, asked, None, rows_file=rows, others=beside), rows.read_bytes()


@cache
def derivation_of(spec: str, sources: tuple[bytes, ...], others: tuple[bytes, ...]) -> tuple[Message, bytes]:
    """The same of a real derivation."""
    with TemporaryDirectory() as name:
        files = written(Path(name), *sources, *others)
        asked = DeriveSpec.model_validate_json(spec)
        result = derive_in_child(asked, files[: len(sources)], Path(name), None, files[len(sources) :])
        return result, (Path(name) / "rows.parquet").read_bytes()


def written(folder: Path, *contents: bytes) -> list[Path]:
    files = [folder / f"input-{number}" for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    return files


def checked(world: World, folder: Path, version: DatasetVersion) -> DatasetVersion:
    """The version after its real check."""
    worker = world.worker(version.job)
    worker.claim()
    files = contents(worker)
    spec = worker.claim_answer["spec"]
    finish(worker, *check_of(json.dumps(spec), files["data"], numbered(files, "other")))
    version.refresh_from_db()
    return version


def made(world: World, folder: Path, version: DatasetVersion) -> DatasetVersion:
    """The version after its real `derive` job."""
    worker = world.worker(version.job)
    worker.claim()
    files = contents(worker)
    spec = worker.claim_answer["spec"]
    finish(worker, *derivation_of(json.dumps(spec), numbered(files, "source"), numbered(files, "other")))
    version.refresh_from_db()
    return version


def test_what_a_report_finds_is_mended_by_a_click_in_a_new_version(world: World, tmp_path: Path) -> None:
    version = checked(world, tmp_path, world.dataset(rows=ROWS))
    client = world.client(world.expert)
    url = f"/w/acme/datasets/{version.dataset_id}/versions/1/"
    page = client.get(url).content.decode()
    assert "1 row repeats an earlier one" in page and "Mask them" in page
    assert page.count('id="version-start"') == 1 and "hx-swap-oob" not in page
    arrived = client.get(url, headers={"hx-request": "true"}).content.decode()
    assert '<span id="version-start" hx-swap-oob="true"><a' in arrived

    assert client.post(url + "change/", {"change": "mask", "kind": ["email"]}).status_code == 302
    assert client.post(url + "change/", {"change": "drop_duplicates"}).status_code == 302
    masked, shorter = (made(world, tmp_path, version.dataset.versions.get(number=n)) for n in (2, 3))
    page = client.get(url.replace("/1/", "/2/")).content.decode()
    assert "[EMAIL]" in page and "email: 1." in page and "Made from" in page
    assert masked.report.valid == 4 and shorter.report.valid == 3
    assert "4 rows before, 3 after" in client.get(url.replace("/1/", "/3/")).content.decode()
    assert masked.sha256 == masked.rows_sha256 != version.rows_sha256
    version.refresh_from_db()
    assert version.report.valid == 4, "the old one stays"


def test_a_split_makes_two_versions_that_share_no_row(world: World, tmp_path: Path) -> None:
    rows = [
        {**chat_row(f"Question {n} of its own?", f"Answer {n}"), "customer": f"c{n % 5}"} for n in range(40)
    ]
    version = checked(world, tmp_path, world.dataset(rows=rows))
    client = world.client(world.expert)
    url = f"/w/acme/datasets/{version.dataset_id}/versions/1/"
    assert '<option value="customer">' in client.get(url).content.decode()
    client.post(url + "change/", {"change": "split", "share": "0.3", "group": "customer"})
    train, heldout = (made(world, tmp_path, version.dataset.versions.get(number=n)) for n in (2, 3))
    assert train.report.valid + heldout.report.valid == 40
    assert heldout.report.valid % 8 == 0 and heldout.report.valid > 0, "a customer is on one side"


def test_rows_that_adapters_are_evaluated_on_are_named_and_removable(world: World, tmp_path: Path) -> None:
    """In a new file, in one that is read in another way, and in what is made of them."""
    heldout = checked(world, tmp_path, world.dataset(rows=ROWS[2:3], name="Held out"))
    before = checked(world, tmp_path, world.dataset(rows=ROWS[3:], name="Before"))
    start_run(by=world.expert, adapter_name="a", base=available_base(), data=before, eval_data=heldout)
    theirs = checked(world, tmp_path, world.dataset(rows=ROWS[2:3], by=world.outsider, name="Theirs"))
    their_data = checked(world, tmp_path, world.dataset(rows=ROWS[3:], by=world.outsider, name="Data"))
    start_run(by=world.outsider, adapter_name="b", base=available_base(), data=their_data, eval_data=theirs)
    client = world.client(world.expert)
    body = jsonl(ROWS)
    dataset = create_dataset(by=world.expert, name="New")
    upload = start_upload(by=world.expert, dataset=dataset, filename="rows.jsonl", size=len(body))
    world.send_parts(upload, body)
    assert client.post(f"/w/acme/uploads/{upload.pk}/finish/").status_code == 200
    checked(world, tmp_path, dataset.versions.get())
    url = f"/w/acme/datasets/{dataset.pk}/versions/"

    def named(number: int) -> bool:
        page = client.get(f"{url}{number}/").content.decode()
        assert "Theirs" not in page
        return "1 row is also in Held out v1" in page

    assert named(1)
    client.post(url + "1/change/", {"change": "drop_duplicates"})
    shorter = made(world, tmp_path, dataset.versions.get(number=2))
    assert named(2), "what is made of it still holds the row"
    client.post(url + "2/change/", {"change": "drop_overlap", "other": heldout.pk})
    assert shorter.report.valid == 3
    assert made(world, tmp_path, dataset.versions.get(number=3)).report.valid == 2 and not named(3)
    client.post(url + "3/change/", {"change": "append", "other": heldout.pk})
    merged = made(world, tmp_path, dataset.versions.get(number=4))
    assert merged.report.valid == 3 and named(4), "merging brought it back"
    assert [source.parent for source in merged.sources.all()] == [dataset.versions.get(number=3), heldout]


def test_two_versions_are_compared_once(world: World, tmp_path: Path) -> None:
    version = checked(world, tmp_path, world.dataset(rows=ROWS))
    client = world.client(world.expert)
    url = f"/w/acme/datasets/{version.dataset_id}/versions/"
    assert "no other version" in client.get(url + "1/diff/").content.decode()
    client.post(url + "1/change/", {"change": "mask", "kind": ["email"]})
    made(world, tmp_path, version.dataset.versions.get(number=2))
    assert "Comparing every row" in client.get(url + "2/diff/").content.decode()
    assert client.get(url + "2/diff/").status_code == 200

    worker = world.worker(Comparison.objects.get().job)
    worker.claim()
    files = inputs(worker, tmp_path)
    spec = CompareSpec.model_validate(worker.claim_answer["spec"])
    result = compare_in_child(spec, files["before"], files["after"], lambda _: None)
    assert worker.post("finish", {"result": result.model_dump(mode="json")}).status_code == 200
    assert (result.changed, result.added, result.removed) == (1, 0, 0)
    page = client.get(url + "2/diff/").content.decode()
    assert "jane.doe@example.com" in page and "[EMAIL]" in page
    assert client.get(url + "2/diff/", {"with": "dv_nothing"}).status_code == 404


def test_rows_are_shown_as_the_base_sees_them(world: World, tmp_path: Path) -> None:
    version = checked(world, tmp_path, world.dataset(rows=ROWS))
    client = world.client(world.expert)
    url = f"/w/acme/datasets/{version.dataset_id}/versions/1/as-seen/"
    assert "No base is here" in client.get(url).content.decode()
    folder = make_base(tmp_path / "tiny")
    base = available_base()
    BaseModel.objects.filter(pk=base.pk).update(template_sha256=template_sha256(folder))
    assert "Rendering the rows" in client.get(url, {"limit": "60"}).content.decode()
    worker = world.worker(RowPreview.objects.get().job)
    worker.claim()
    spec = PreviewSpec.model_validate(worker.claim_answer["spec"])
    assert spec.base == base.pk
    result = preview(spec, base=folder, data=inputs(worker, tmp_path)["data"])
    assert worker.post("finish", {"result": result.model_dump(mode="json")}).status_code == 200
    page = client.get(url, {"limit": "60"}).content.decode()
    assert '<mark class="seen-trained">' in page and "The tenant pays." in page
    assert "longer than 60 tokens" in page
    assert client.get(url, {"limit": "60"}).status_code == 200 and RowPreview.objects.count() == 1
    assert client.get(url, {"limit": "many"}).status_code == 400
    assert client.get(url, {"policy": "some"}).status_code == 400


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ({}, "unknown_change"),
        ({"change": "append"}, "nothing_said"),
        ({"change": "filter", "contains": " "}, "nothing_said"),
        ({"change": "drop_rows", "rows": "all"}, "bad_rows"),
        ({"change": "split", "share": "much"}, "bad_share"),
        ({"change": "trim", "what": "everything"}, "bad_change"),
    ],
)
def test_a_change_that_says_nothing_is_a_sentence(
    world: World, tmp_path: Path, form: dict[str, str], code: str
) -> None:
    version = checked(world, tmp_path, world.dataset(rows=ROWS))
    url = f"/w/acme/datasets/{version.dataset_id}/versions/1/change/"
    answer = world.client(world.expert).post(url, form, headers={"accept": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == code
    assert version.dataset.versions.count() == 1


def test_nothing_is_made_of_what_is_not_checked_or_not_ones_own(world: World, tmp_path: Path) -> None:
    version = world.dataset(rows=ROWS)
    with pytest.raises(Conflict, match="check has not ended"):
        derive_version(by=world.expert, version=version, operations=[DropDuplicates()])
    version = checked(world, tmp_path, version)
    foreign = checked(world, tmp_path, world.dataset(rows=ROWS, name="Theirs", by=world.outsider))
    with pytest.raises(NotFound):
        derive_version(by=world.outsider, version=version, operations=[DropDuplicates()])
    with pytest.raises(NotFound):
        derive_version(by=world.expert, version=version, operations=[DropOverlap(source=1)], others=[foreign])
