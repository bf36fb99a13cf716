"""Backup and restore by the commands themselves, into a second database and a second bucket."""

import io
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from django.conf import settings
from django.db import connection

from stillhouse.core import blobs
from tests.world import World, make_world

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.django_db(transaction=True)
READS = (
    "SELECT string_agg(slug, ',' ORDER BY slug) FROM accounts_workspace",
    "SELECT string_agg(sha256, ',' ORDER BY sha256) FROM datasets_datasetversion",
)


@pytest.fixture(autouse=True)
def own_bucket(monkeypatch: pytest.MonkeyPatch, stores: None) -> None:
    """A backup takes the whole bucket: here one in which no other test has left anything."""
    name = f"backup-{uuid.uuid4().hex}"
    monkeypatch.setattr(settings, "S3_BUCKET", name)
    monkeypatch.setenv("S3_BUCKET", name)
    blobs.ensure_bucket()


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of an empty platform on the same servers."""
    name = f"restored_{os.getpid()}"
    here = urlsplit(settings.DATABASE_URL)
    with psycopg.connect(settings.DATABASE_URL, autocommit=True) as server:
        server.execute(f"DROP DATABASE IF EXISTS {name}")
        server.execute(f"CREATE DATABASE {name}")
    yield {
        "DATABASE_URL": urlunsplit(here._replace(path=f"/{name}")),
        "S3_BUCKET": f"restored-{uuid.uuid4().hex}",
    }
    with psycopg.connect(settings.DATABASE_URL, autocommit=True) as server:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def manage(*arguments: object, **environment: str) -> tuple[int, dict[str, Any]]:
    """Exit status and the JSON that a command said, on either stream."""
    done = subprocess.run(
        [sys.executable, "manage.py", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, json.loads(done.stdout or done.stderr)


def test_a_backup_brings_everything_back_elsewhere(elsewhere: dict[str, str], tmp_path: Path) -> None:
    world: World = make_world()
    version = world.dataset()
    here = urlsplit(settings.DATABASE_URL)._replace(path=f"/{connection.settings_dict['NAME']}")
    out = tmp_path / "backup"
    blobs.store().put_object(
        settings.S3_BUCKET, "checkpoints/job_1/1/4/state.json", io.BytesIO(b"{}"), length=2
    )
    status, made = manage("backup", "--out", out, DATABASE_URL=urlunsplit(here))
    assert status == 0 and made["objects"], made
    listed = [each["key"] for each in json.loads((out / "backup.json").read_bytes())["objects"]]
    assert listed[0].startswith("checkpoints/") and len(set(listed)) == len(listed), "what goes soon, first"
    status, refused = manage("backup", "--out", out, DATABASE_URL=urlunsplit(here))
    assert status == 1 and refused["error"]["code"] == "backup_exists"

    status, restored = manage("restore", "--from", out, **elsewhere)
    assert status == 0 and restored["objects"] == made["objects"]
    with psycopg.connect(elsewhere["DATABASE_URL"]) as there, psycopg.connect(urlunsplit(here)) as original:
        for query in READS:
            assert there.execute(query).fetchone() == original.execute(query).fetchone()
    there_is = blobs.store().stat_object(elsewhere["S3_BUCKET"], blobs.blob_key(version.sha256))
    assert there_is.size == version.size
    status, checked = manage("audit", "verify", **elsewhere)
    assert status == 0, checked
    status, refused = manage("restore", "--from", out, **elsewhere)
    assert status == 1 and refused["error"]["code"] == "not_empty"


def test_a_damaged_backup_is_refused_before_anything_is_written(
    elsewhere: dict[str, str], tmp_path: Path
) -> None:
    world: World = make_world()
    version = world.dataset()
    here = urlsplit(settings.DATABASE_URL)._replace(path=f"/{connection.settings_dict['NAME']}")
    whole = tmp_path / "backup"
    assert manage("backup", "--out", whole, DATABASE_URL=urlunsplit(here))[0] == 0

    def no_manifest(out: Path) -> None:
        (out / "backup.json").unlink()

    def a_byte(out: Path) -> None:
        with (out / "database.dump").open("r+b") as file:
            file.seek(1000)
            file.write(b"\0")

    def an_object_missing(out: Path) -> None:
        (out / "objects" / blobs.blob_key(version.sha256)).unlink()

    for damage, code in (
        (no_manifest, "no_backup"),
        (a_byte, "backup_damaged"),
        (an_object_missing, "backup_damaged"),
    ):
        out = shutil.copytree(whole, tmp_path / damage.__name__)
        damage(out)
        status, said = manage("restore", "--from", out, **elsewhere)
        assert (status, said["error"]["code"]) == (1, code), damage.__name__
        with psycopg.connect(elsewhere["DATABASE_URL"]) as there:
            tables = there.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
        assert tables == (0,), damage.__name__
        assert not blobs.store().bucket_exists(elsewhere["S3_BUCKET"]), damage.__name__
