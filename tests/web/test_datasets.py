"""Datasets: names, uploads by presigned multipart to a real store, versions."""

import hashlib
from collections.abc import Callable

import pytest
from django.conf import settings as django_settings
from pytest_django.fixtures import Settings

from stillhouse.audit.models import AuditEvent
from stillhouse.core import blobs
from stillhouse.core.errors import NotFound, UserError
from stillhouse.datasets import uploading
from stillhouse.datasets.actions import create_dataset, read_differently, record_report
from stillhouse.datasets.models import Dataset, DatasetReport, DatasetVersion, Upload
from stillhouse.datasets.queries import (
    datasets,
    get_dataset,
    get_upload,
    get_version,
    trainable,
    version_by_id,
    versions,
)
from stillhouse.datasets.quota import Room, room_of, set_quota
from stillhouse.datasets.uploading import abandon_upload, finish_upload, part_url, start_upload
from stillhouse.jobs.models import Job, Outbox
from tests.registry import at_once
from tests.world import World, chat_row, fetch, jsonl, put, sha256
from workers.contract import Mapping, Problem, ValidateSpec, ValidationReport

pytestmark = pytest.mark.django_db


def error_of(call: Callable[[], object]) -> UserError:
    with pytest.raises(UserError) as caught:
        call()
    assert caught.value.message
    return caught.value


@pytest.fixture
def dataset(world: World) -> Dataset:
    return create_dataset(by=world.expert, name="Clauses")


def test_a_file_becomes_a_version_with_its_check_queued(world: World, dataset: Dataset) -> None:
    body = jsonl([chat_row("Q", "Ä")])
    version = world.upload(body, dataset=dataset, filename="clauses.jsonl")
    assert (version.number, version.sha256, version.size) == (1, sha256(body), len(body))
    assert b"".join(blobs.read(version.sha256)) == body == fetch(blobs.get_url(version.sha256))
    job = version.job
    assert (job.kind, job.queue, job.subject, job.state) == ("validate", "cpu", version.pk, "queued")
    assert ValidateSpec.model_validate(job.spec) and Outbox.objects.filter(job=job).count() == 1
    event = AuditEvent.objects.get(action="dataset.version_created")
    assert event.details["sha256"] == version.sha256 and event.actor == world.expert.user
    upload = Upload.objects.get()
    assert upload.finished_at and blobs.staged_size(upload.staging_key) is None


def test_a_file_of_several_parts_is_put_together_in_order(world: World, dataset: Dataset) -> None:
    body = b"".join(hashlib.sha256(str(n).encode()).digest() for n in range(600_000))
    upload = start_upload(by=world.expert, dataset=dataset, filename="big.jsonl", size=len(body))
    assert (upload.part_size, upload.part_count) == (8 * 1024**2, 3)
    for number in (3, 1, 2):
        part = body[(number - 1) * upload.part_size : number * upload.part_size]
        put(part_url(by=world.expert, upload=upload, number=number), part)
    assert finish_upload(by=world.expert, upload=upload).sha256 == sha256(body)


def test_a_large_blob_is_copied_piece_by_piece(
    world: World, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "COPY_PIECE", 5 * 1024**2)
    body = b"".join(hashlib.sha256(b"large %d" % n).digest() for n in range(400_000))
    version = world.upload(body, dataset=dataset)
    assert b"".join(blobs.read(version.sha256)) == body


@pytest.mark.parametrize(
    "size", [1, 8 * 1024**2, 8 * 1024**2 + 1, 80_000 * 1024**2 - 1, 80_000 * 1024**2 + 1, 5 * 1024**4]
)
def test_parts_are_large_enough_to_be_few_enough(size: int) -> None:
    part = uploading._part_size(size)
    assert part >= 8 * 1024**2 and part % 1024**2 == 0 and -(-size // part) <= 10_000


@pytest.mark.parametrize(
    "name",
    ["", "   ", "../etc/passwd", "a/b", "a\\b", ".hidden", "tab\there", "x" * 121, "\u202eevil", "nul\0"],
)
def test_names_that_cannot_be_are_refused(world: World, name: str) -> None:
    error = error_of(lambda: create_dataset(by=world.expert, name=name))
    assert error.code == "bad_name" and error.next_step and not Dataset.objects.exists()


def test_a_name_is_taken_once_in_each_workspace(world: World, dataset: Dataset) -> None:
    assert error_of(lambda: create_dataset(by=world.lead, name=" Clauses ")).code == "name_taken"
    assert create_dataset(by=world.outsider, name="Clauses").workspace == world.outsider.workspace


@pytest.mark.parametrize(
    ("filename", "size", "code"),
    [
        ("../rows.jsonl", 10, "bad_name"),
        ("rows\n.jsonl", 10, "bad_name"),
        ("x" * 200 + ".jsonl", 10, "bad_name"),
        ("rows.docx", 10, "unknown_format"),
        ("rows", 10, "unknown_format"),
        ("rows.jsonl", 0, "empty_file"),
        ("rows.jsonl", -1, "empty_file"),
        ("rows.jsonl", 20 * 1024**3 + 1, "file_too_large"),
    ],
)
def test_uploads_that_cannot_be_are_refused(
    world: World, dataset: Dataset, filename: str, size: int, code: str
) -> None:
    error = error_of(lambda: start_upload(by=world.expert, dataset=dataset, filename=filename, size=size))
    assert error.code == code and error.next_step and not Upload.objects.exists()


@pytest.mark.parametrize("number", [-1, 0, 2])
def test_a_part_that_is_none_has_no_address(world: World, dataset: Dataset, number: int) -> None:
    upload = start_upload(by=world.expert, dataset=dataset, filename="rows.jsonl", size=10)
    assert error_of(lambda: part_url(by=world.expert, upload=upload, number=number)).code == "no_such_part"


def test_a_file_that_did_not_arrive_whole_is_no_version_yet(world: World, dataset: Dataset) -> None:
    body = jsonl([chat_row("Q", "A")])
    upload = start_upload(by=world.expert, dataset=dataset, filename="rows.jsonl", size=len(body))
    assert error_of(lambda: finish_upload(by=world.expert, upload=upload)).code == "upload_incomplete"
    put(part_url(by=world.expert, upload=upload, number=1), body[:-1])
    error = error_of(lambda: finish_upload(by=world.expert, upload=upload))
    assert error.code == "upload_incomplete" and "0 of its 1 parts" in error.message
    assert not DatasetVersion.objects.exists() and not Job.objects.exists()
    put(part_url(by=world.expert, upload=upload, number=1), body)
    assert finish_upload(by=world.expert, upload=upload).sha256 == sha256(body)


def test_more_bytes_than_allowed_are_thrown_away_at_the_finish(
    world: World, dataset: Dataset, settings: Settings
) -> None:
    settings.MAX_UPLOAD_BYTES = 100
    upload = start_upload(by=world.expert, dataset=dataset, filename="rows.jsonl", size=100)
    put(part_url(by=world.expert, upload=upload, number=1), b"x" * 101)
    error = error_of(lambda: finish_upload(by=world.expert, upload=upload))
    assert (error.code, error.status) == ("file_too_large", 413)
    assert not Upload.objects.exists()
    assert (
        error_of(lambda: blobs.arrived_parts(upload.staging_key, upload.storage_upload_id)).code
        == "upload_gone"
    )


def test_finishing_again_gives_the_same_version(world: World, dataset: Dataset) -> None:
    version = world.upload(jsonl([chat_row("Q", "A")]), dataset=dataset)
    upload = Upload.objects.get()
    assert finish_upload(by=world.expert, upload=upload) == version
    assert DatasetVersion.objects.count() == 1 and Job.objects.count() == 1
    assert error_of(lambda: part_url(by=world.expert, upload=upload, number=1)).code == "upload_finished"
    assert error_of(lambda: abandon_upload(by=world.expert, upload=upload)).code == "upload_finished"
    assert blobs.exists(version.sha256)


@pytest.mark.django_db(transaction=True)
def test_two_tabs_finish_one_version(world: World, dataset: Dataset) -> None:
    body = jsonl([chat_row("Two", "tabs")])
    upload = start_upload(by=world.expert, dataset=dataset, filename="rows.jsonl", size=len(body))
    world.send_parts(upload, body)
    first, second = at_once(*[lambda: finish_upload(by=world.expert, upload=upload)] * 2)
    assert isinstance(first, DatasetVersion) and first == second
    assert DatasetVersion.objects.count() == 1 and Job.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_two_uploads_at_once_are_two_versions(world: World, dataset: Dataset) -> None:
    uploads = []
    for body in (b'{"a": 1}\n', b'{"b": 2}\n'):
        upload = start_upload(by=world.expert, dataset=dataset, filename="rows.jsonl", size=len(body))
        world.send_parts(upload, body)
        uploads.append(upload)
    made = at_once(
        *[lambda upload=upload: finish_upload(by=world.expert, upload=upload) for upload in uploads]
    )
    assert sorted(version.number for version in made) == [1, 2]


@pytest.mark.parametrize("step", ["finish_multipart", "adopt"])
def test_a_finish_that_died_half_way_can_be_repeated(
    world: World, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    body = jsonl([chat_row("Half", step)])
    upload = start_upload(by=world.expert, dataset=dataset, filename="rows.jsonl", size=len(body))
    world.send_parts(upload, body)
    real = getattr(blobs, step)

    def dies_afterwards(*args: object, **named: object) -> None:
        real(*args, **named)
        raise ConnectionError

    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(blobs, step, dies_afterwards)
        finish_upload(by=world.expert, upload=upload)
    assert not DatasetVersion.objects.exists()
    assert finish_upload(by=world.expert, upload=upload).sha256 == sha256(body)


def test_the_same_bytes_again_are_no_new_version(world: World, dataset: Dataset) -> None:
    body = jsonl([chat_row("Q", "A")])
    first = world.upload(body, dataset=dataset)
    error = error_of(lambda: world.upload(body, dataset=dataset, filename="copy.jsonl"))
    assert (error.code, error.status) == ("same_content", 409) and "Clauses v1" in error.message
    assert DatasetVersion.objects.get() == first and blobs.exists(first.sha256)
    other = world.upload(body, dataset=create_dataset(by=world.expert, name="Other"))
    assert other.number == 1 and other.sha256 == first.sha256
    assert world.upload(body + body, dataset=dataset).number == 2


def test_an_abandoned_upload_leaves_nothing(world: World, dataset: Dataset) -> None:
    upload = start_upload(by=world.expert, dataset=dataset, filename="rows.jsonl", size=10)
    put(part_url(by=world.expert, upload=upload, number=1), b"0123456789")
    abandon_upload(by=world.expert, upload=upload)
    assert not Upload.objects.exists()
    with pytest.raises(NotFound):
        finish_upload(by=world.expert, upload=upload)


def test_an_outsider_finds_nothing_and_does_nothing(world: World, dataset: Dataset) -> None:
    body = jsonl([chat_row("Q", "A")])
    version = world.upload(body, dataset=dataset)
    upload = start_upload(by=world.expert, dataset=dataset, filename="next.jsonl", size=10)
    out = world.outsider
    calls: list[Callable[[], object]] = [
        lambda: get_dataset(out, dataset.pk),
        lambda: get_version(out, dataset.pk, 1),
        lambda: version_by_id(out, version.pk),
        lambda: get_upload(out, upload.pk),
        lambda: start_upload(by=out, dataset=dataset, filename="rows.jsonl", size=10),
        lambda: part_url(by=out, upload=upload, number=1),
        lambda: finish_upload(by=out, upload=upload),
        lambda: abandon_upload(by=out, upload=upload),
    ]
    for call in calls:
        error = error_of(call)
        assert isinstance(error, NotFound) and error.status == 404
    assert not datasets(out) and not versions(out) and not trainable(out)
    assert Upload.objects.filter(pk=upload.pk, finished_at=None).exists()


def test_a_report_is_kept_and_decides_what_is_trainable(world: World, dataset: Dataset) -> None:
    good, bad = (world.upload(body, dataset=dataset) for body in (b'{"a": 1}\n', b"nothing\n"))
    for version, valid in ((good, 1), (bad, 0)):
        problem = Problem(row=1, field="", code="not_json", message="Row 1 holds a \0 character.")
        report = ValidationReport(
            rows=1,
            valid=valid,
            errors=[] if valid else [problem],
            warnings=[],
            error_count=1 - valid,
            warning_count=0,
            samples=[{"messages": [{"role": "user", "content": "a\0b"}]}],
            seconds=0.1,
            peak_rss_bytes=1,
        )
        record_report(version=version, report=report)
        record_report(version=version, report=report)
    assert list(trainable(world.expert)) == [good]
    kept = DatasetReport.objects.get(version=bad)
    assert (kept.rows, kept.valid, kept.error_count) == (1, 0, 1)
    assert kept.body["errors"][0]["message"] == "Row 1 holds a � character."


def test_the_store_and_the_settings_agree() -> None:
    assert blobs.store().bucket_exists(django_settings.S3_BUCKET)
    blobs.ensure_bucket()


def test_uploads_keep_to_the_workspace_s_quota(world: World, dataset: Dataset, settings: Settings) -> None:
    settings.DATA_QUOTA_BYTES = 1000
    body = jsonl([chat_row("Q", "A")])
    world.upload(body, dataset=dataset, filename="rows.jsonl")
    assert room_of(world.expert.workspace) == Room(len(body), 1000)
    under_way = start_upload(by=world.expert, dataset=dataset, filename="a.jsonl", size=800)
    assert room_of(world.expert.workspace).used == len(body) + 800
    error = error_of(lambda: start_upload(by=world.expert, dataset=dataset, filename="b.jsonl", size=300))
    assert error.code == "quota_reached" and error.status == 413 and "1000 bytes" in error.message
    assert Upload.objects.filter(finished_at=None).count() == 1
    abandon_upload(by=world.expert, upload=under_way)
    start_upload(by=world.expert, dataset=dataset, filename="b.jsonl", size=300)
    assert room_of(world.outsider.workspace).used == 0


def test_a_file_counts_once_however_it_is_read(world: World, dataset: Dataset) -> None:
    body = jsonl([chat_row("Q", "A")])
    version = world.upload(body, dataset=dataset, filename="rows.jsonl")
    read_differently(
        by=world.expert, version=version, mapping=Mapping(shape="columns", question="a", answer="b")
    )
    assert room_of(world.expert.workspace).used == len(body)


def test_a_workspace_may_have_a_quota_of_its_own(world: World, dataset: Dataset) -> None:
    workspace = world.expert.workspace
    set_quota(workspace, 10)
    workspace.refresh_from_db()
    assert room_of(workspace).limit == 10
    assert AuditEvent.objects.get(action="workspace.quota_set").details == {"bytes": 10}
    error = error_of(lambda: start_upload(by=world.expert, dataset=dataset, filename="b.jsonl", size=11))
    assert error.code == "quota_reached"
    set_quota(workspace, None)
    workspace.refresh_from_db()
    assert room_of(workspace).limit == django_settings.DATA_QUOTA_BYTES
    assert error_of(lambda: set_quota(workspace, -1)).code == "bad_quota"
