"""Settings and servers for the tests: real Postgres, real Valkey, a real S3 server, started once per session.

Where DATABASE_URL is set already (a developer's own servers), those are used and nothing is started. Each
process of pytest-xdist (`-n 2`) has servers of its own.
"""

import gc
import os
from collections.abc import Iterator

import django
import pytest
from django.db import connection
from django.test import TransactionTestCase

from tests.stores import Stores

_stores: Stores | None = None


def pytest_configure(config: pytest.Config) -> None:
    """Give settings.py its environment, and load it."""
    global _stores
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # pytest-xdist's own process runs no test, and its children would inherit this environment
    if "DATABASE_URL" not in os.environ:
        _stores = Stores()
        os.environ.update(_stores.settings())
    os.environ.setdefault("RETRY_SECONDS", "0")  # tests do not sleep through the pause after a failure
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "stillhouse.settings")
    django.setup()


def pytest_collection_finish() -> None:
    """What is loaded by now stays: the collector need not walk through torch and Django between tests."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    global _stores
    if _stores is not None:
        _stores.stop()
        _stores = None


@pytest.fixture(scope="session")
def stores() -> Iterator[None]:
    """Postgres, the broker and the object store answer; the bucket exists."""
    if _stores is not None:
        _stores.start()
    from stillhouse.core.blobs import ensure_bucket  # noqa: PLC0415 - reads the settings when it is imported

    ensure_bucket()
    yield


@pytest.fixture(scope="session")
def servers(stores: None) -> Stores | None:
    """The session's own servers, to be switched off and on; None where the developer's are used."""
    return _stores


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> Iterator[None]:
    """After a test that commits, its rows are deleted. Django would truncate all tables, which makes hundreds
    of files anew, and fill in permissions and content types again."""
    with pytest.MonkeyPatch.context() as patch:
        if (stores := _stores) is not None:

            def empty(case: TransactionTestCase) -> None:
                stores.empty(connection.settings_dict["NAME"])

            patch.setattr(TransactionTestCase, "_fixture_teardown", empty)
        yield


@pytest.fixture(scope="session")
def django_db_modify_db_settings(stores: None) -> None:
    """pytest-django's first step before it makes the test database: the server has to run by then."""
