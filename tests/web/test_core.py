"""The small things everything stands on: ids, text, digests, blobs, set-up."""

import io
import json
from datetime import timedelta

import pytest
from django.core.management import call_command
from pytest_django.fixtures import Settings
from urllib3.exceptions import ProtocolError

from stillhouse.catalog.models import BaseModel
from stillhouse.core import blobs
from stillhouse.core.errors import UserError
from stillhouse.core.ids import new_id
from stillhouse.core.pending import Holder
from stillhouse.core.secrets import derived_key, digest, same
from stillhouse.core.text import clean_name, storable, storable_json
from tests.proxy import SORRY, STARTING, Proxy
from tests.world import put, sha256


def test_ids_say_their_kind_and_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([1_000_000_000_000_000_000, 1_000_000_000_001_000_000, 1_900_000_000_000_000_000])
    monkeypatch.setattr("time.time_ns", lambda: next(now))
    ids = [new_id("run") for _ in range(3)]
    assert ids == sorted(ids) and all(id.startswith("run_") and len(id) == 26 for id in ids)
    monkeypatch.undo()
    assert len({new_id("run") for _ in range(10_000)}) == 10_000


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("plain é 漢 🙂", "plain é 漢 🙂"),
        ("a\0b", "a�b"),
        ("\ud800x", "�x"),
        ("🙂\udc00", "🙂�"),
        ("\ud83d\ude42", "🙂"),
    ],
)
def test_what_postgres_refuses_is_replaced_and_nothing_else(text: str, stored: str) -> None:
    assert storable(text) == stored
    assert storable_json({text: [text, 1, None, {"x": text}]}) == {stored: [stored, 1, None, {"x": stored}]}


def test_names_are_trimmed_and_composed() -> None:
    assert clean_name("  Vertra\u0308ge 2026 (neu).v2 ", what="name") == "Verträge 2026 (neu).v2"
    with pytest.raises(UserError):
        clean_name("\u200binvisible", what="name")


def test_a_digest_is_for_one_purpose() -> None:
    assert digest("api-key", "x") != digest("job-token", "x") and derived_key("a") != derived_key("b")
    assert same("é", "é") and not same("é", "e") and not same("", "x")


def test_a_blob_is_kept_once_and_read_back() -> None:
    blob = blobs.put(b"kept")
    assert blobs.put(b"kept") == blob and blob.sha256 == sha256(b"kept")
    assert b"".join(blobs.read(blob.sha256)) == b"kept"
    assert not blobs.exists("0" * 64)


@pytest.mark.parametrize("page", [STARTING, SORRY], ids=["not found", "sorry"])
def test_a_page_in_the_place_of_the_store_says_nothing_of_an_object(
    settings: Settings, request: pytest.FixtureRequest, page: bytes
) -> None:
    """Neither that it is there, nor that it is not, nor that it is removed."""
    blob = blobs.put(b"kept")
    front = Proxy(settings.S3_ENDPOINT)
    request.addfinalizer(front.close)
    request.addfinalizer(blobs.store.cache_clear)
    settings.S3_ENDPOINT = front.url
    blobs.store.cache_clear()
    with front.answering(page):
        for ask in (blobs.exists, blobs.remove, blobs.staged_size, lambda key: next(blobs.read(key))):
            with pytest.raises(ProtocolError, match="in front of the store"):
                ask(blob.sha256)
    assert blobs.exists(blob.sha256)


@pytest.mark.django_db
def test_what_was_uploaded_is_kept_under_its_own_digest_only() -> None:
    holder = Holder("up_1", "ws_1")
    put(blobs.put_url("staging/test/x"), b"bytes")
    with pytest.raises(UserError) as caught:
        blobs.keep("staging/test/x", holder=holder, expected_sha256="0" * 64)
    assert caught.value.code == "digest_mismatch" and blobs.staged_size("staging/test/x") == 5
    blob = blobs.keep("staging/test/x", holder=holder, expected_sha256=sha256(b"bytes"))
    assert blobs.staged_size("staging/test/x") is None
    assert blobs.keep("staging/test/x", holder=holder, expected_sha256=blob.sha256) == blob
    with pytest.raises(UserError) as caught:
        blobs.keep("staging/test/x", holder=holder, expected_sha256=sha256(b"other bytes"))
    assert caught.value.code == "upload_missing"


def test_more_than_a_thousand_parts_are_all_listed() -> None:
    key = "staging/test/parts"
    upload = blobs.start_multipart(key)
    for number in range(1, 1003):
        put(blobs.part_url(key, upload, number), b"x")
    assert [part.part_number for part in blobs.arrived_parts(key, upload)] == list(range(1, 1003))
    blobs.abort_multipart(key, upload)


def test_old_staging_objects_are_swept_and_blobs_are_not() -> None:
    blob = blobs.put(b"not staging")
    put(blobs.put_url("staging/test/old"), b"left behind")
    upload = blobs.start_multipart("staging/test/unfinished")
    put(blobs.part_url("staging/test/unfinished", upload, 1), b"part")
    blobs.sweep_staging(timedelta(days=1))
    assert blobs.staged_size("staging/test/old") == 11
    assert len(blobs.arrived_parts("staging/test/unfinished", upload)) == 1
    assert blobs.sweep_staging(timedelta(seconds=-10)) >= 2
    assert blobs.staged_size("staging/test/old") is None and blobs.exists(blob.sha256)
    with pytest.raises(UserError):
        blobs.arrived_parts("staging/test/unfinished", upload)


@pytest.mark.django_db
def test_set_up_may_run_again() -> None:
    for _ in range(2):
        out = io.StringIO()
        call_command("setup", stdout=out)
        assert "smollm2-135m-instruct" in json.loads(out.getvalue())["bases"]
    assert BaseModel.objects.count() == len(json.loads(out.getvalue())["bases"])
