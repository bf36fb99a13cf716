"""The servers that the tests run on are the embedded ones: what the platform relies on holds for them."""

import psycopg
import pytest
from django.conf import settings
from minio import Minio
from minio.error import S3Error

from stillhouse.core import blobs


def test_the_application_role_is_bound_by_row_level_security() -> None:
    with psycopg.connect(settings.DATABASE_URL) as connection:
        row = connection.execute(
            "SELECT rolsuper, rolbypassrls, rolcreaterole FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
        owner = connection.execute(
            "SELECT pg_catalog.pg_get_userbyid(datdba) = current_user FROM pg_database"
            " WHERE datname = current_database()"
        ).fetchone()
        version = connection.execute("SHOW server_version_num").fetchone()
    assert row == (False, False, False)
    assert owner == (True,)
    assert version is not None
    assert int(str(version[0])) >= 180000


def test_the_store_wants_a_key() -> None:
    stranger = Minio(settings.S3_ENDPOINT.removeprefix("http://"), secure=False)
    with pytest.raises(S3Error) as refused:
        list(stranger.list_objects(settings.S3_BUCKET))
    assert refused.value.code == "AccessDenied"


def test_a_bucket_is_not_made_by_an_upload() -> None:
    with pytest.raises(S3Error) as refused:
        blobs.store().stat_object("no-such-bucket", "x")
    assert refused.value.code in ("NoSuchBucket", "NoSuchKey")
