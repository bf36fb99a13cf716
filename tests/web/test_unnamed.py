"""Objects that no row names: found and removed, and nothing else is."""

from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection
from django.utils import timezone

from stillhouse.adapters.models import AdapterVersion
from stillhouse.core import blobs
from stillhouse.core.models import PendingObject
from stillhouse.core.pending import Holder, settling
from stillhouse.datasets.models import DatasetVersion, Upload
from stillhouse.erasure.confirming import confirm_erasure
from stillhouse.erasure.forgetting import settle_erasures
from stillhouse.erasure.models import Erasure
from stillhouse.erasure.unnamed import is_named, remove_object, remove_unnamed
from tests.registry import at_once, validation_report
from tests.waiting import wait_for
from tests.web.test_erasure import ROWS, SECRET, searched
from tests.web.worker_calls import REPORT, adapter_files, finish_with, started, state
from tests.world import World, chat_row, jsonl, put, sha256

pytestmark = pytest.mark.django_db
AT_ONCE = timedelta(seconds=-60)
"""Of an age that everything has."""


def refuse(world: World, rows: bytes, version: DatasetVersion | None = None) -> tuple[DatasetVersion, str]:
    """A check whose rows arrived and whose report is no report: the version, and the digest of the rows."""
    version = version or world.dataset()
    worker = world.worker(version.job)
    worker.claim()
    assert finish_with(worker, {"rows.parquet": rows}, {"valid": "many"}).status_code == 200
    assert state(version.job) == "queued"
    return version, sha256(rows)


def test_a_refused_result_leaves_nothing_after_the_sweep(world: World) -> None:
    version, digest = refuse(world, b"rows of a report that is none")
    assert blobs.exists(digest) and not is_named(digest)
    assert remove_unnamed() == 0 and blobs.exists(digest), "it might still be named"
    assert remove_unnamed(older_than=AT_ONCE) == 1
    assert not blobs.exists(digest) and not PendingObject.objects.exists()
    assert blobs.exists(version.sha256)


def test_what_one_attempt_left_behind_goes_when_the_next_has_succeeded(world: World) -> None:
    version, digest = refuse(world, b"rows of the first attempt")
    worker = world.worker(version.job)
    worker.claim()
    assert finish_with(worker, {"rows.parquet": b"rows of the second"}, REPORT).status_code == 200
    assert [each.sha256 for each in PendingObject.objects.all()] == [digest]
    assert remove_unnamed(older_than=AT_ONCE) == 1
    version.refresh_from_db()
    assert not blobs.exists(digest) and blobs.exists(version.rows_sha256)


def test_a_refused_adapter_goes_and_a_good_one_stays(world: World) -> None:
    run = started(world)
    worker = world.worker(run.job)
    worker.claim()
    files = adapter_files(run)
    bad = {**files, "adapter_model.safetensors": b"weights that the manifest does not name"}
    result = {"manifest_sha256": sha256(files["manifest.json"])}
    assert finish_with(worker, bad, result).status_code == 200
    again = world.worker(run.job)
    again.claim()
    assert finish_with(again, files, result).status_code == 200
    assert AdapterVersion.objects.count() == 1
    assert remove_unnamed(older_than=AT_ONCE) == 1
    assert not blobs.exists(sha256(bad["adapter_model.safetensors"]))
    assert all(blobs.exists(sha256(body)) for body in files.values())
    assert not PendingObject.objects.exists()


def test_an_object_in_use_or_on_its_way_is_not_swept(world: World) -> None:
    version = world.dataset()
    assert not PendingObject.objects.exists(), "a row names it"
    Holder("job_1/1", "ws_1").expects(version.sha256)  # the same bytes, by somebody whose result is refused
    assert remove_unnamed(older_than=AT_ONCE) == 0
    assert blobs.exists(version.sha256) and not PendingObject.objects.exists()

    digest = blobs.put(b"brought twice").sha256
    for holder in ("job_1/1", "job_2/1"):
        Holder(holder, "ws_1").expects(digest)
    day = timedelta(days=1)
    PendingObject.objects.filter(holder="job_1/1").update(since=timezone.now() - 2 * day)
    assert remove_unnamed(older_than=day) == 0 and blobs.exists(digest)
    assert [each.holder for each in PendingObject.objects.all()] == ["job_2/1"]


def test_what_another_row_names_or_somebody_brings_is_not_removed(world: World) -> None:
    run = started(world)
    worker = world.worker(run.job)
    worker.claim()
    files = adapter_files(run)
    manifest = sha256(files["manifest.json"])
    assert finish_with(worker, files, {"manifest_sha256": manifest}).status_code == 200
    version = AdapterVersion.objects.get()
    remove_object(manifest)
    assert blobs.exists(manifest), "the version names it"
    bringer = Holder("job_9/1", "ws_9")
    bringer.expects(manifest)  # another workspace's run of the same data, settings and seed
    remove_object(manifest, of=version)
    assert blobs.exists(manifest), "its run has been told that it is there"
    bringer.brought()
    remove_object(manifest, of=version)
    assert not blobs.exists(manifest)


@pytest.mark.django_db(transaction=True)
def test_who_brings_an_object_that_is_being_removed_brings_it_again() -> None:
    digest = blobs.put(b"on its way out").sha256
    Holder("job_1/1", "ws_1").expects(digest)
    put(blobs.put_url("staging/test/again"), b"on its way out")

    def sweep() -> None:
        with settling(digest, AT_ONCE) as alone:
            wait_for(lambda: locks(granted=False))  # the other one waits for us
            assert alone
            blobs.remove(digest)

    def bring() -> blobs.Blob:
        wait_for(lambda: locks(granted=True))
        return blobs.adopt("staging/test/again", holder=Holder("job_2/1", "ws_1"))

    swept, brought = at_once(sweep, bring)
    assert swept is None and brought.sha256 == digest
    assert blobs.exists(digest) and [each.holder for each in PendingObject.objects.all()] == ["job_2/1"]


def locks(*, granted: bool) -> int:
    """Advisory locks of this database that somebody has, or waits for."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database"
            " WHERE locktype = 'advisory' AND datname = current_database() AND granted = %s",
            [granted],
        )
        return int(cursor.fetchone()[0])


def test_the_same_bytes_again_leave_nothing_behind(world: World) -> None:
    body = jsonl([chat_row("Twice", "sent")])
    first = world.dataset(rows=[chat_row("Twice", "sent")])
    before = set(blobs.objects(blobs.STAGING))
    with pytest.raises(Exception, match="holds the same bytes"):
        world.upload(body, dataset=first.dataset)
    assert Upload.objects.count() == 1 and not PendingObject.objects.exists()
    assert set(blobs.objects(blobs.STAGING)) <= before


def test_an_erasure_ends_when_no_unnamed_object_is_left(world: World, tmp_path: Path) -> None:
    version, digest = refuse(world, b"rows with " + SECRET.encode(), world.dataset(rows=ROWS))
    worker = world.worker(version.job)
    worker.claim()
    report = validation_report(valid=1, with_reasoning=0).model_dump(mode="json")
    assert worker.post("finish", {"result": report}).status_code == 200
    erasure = searched(world, tmp_path)
    confirm_erasure(by=world.lead, erasure=erasure)
    Erasure.objects.filter(pk=erasure.pk).update(bytes_due_at=timezone.now())
    assert settle_erasures() == 0 and blobs.exists(digest)
    assert remove_unnamed(older_than=AT_ONCE) == 1
    assert settle_erasures() == 1 and not blobs.exists(digest)
