"""The platform of the version before goes on working while this one's migrations are in: web processes and
workers are replaced one after the other. So a migration adds; what it would remove, a later version removes.
"""

from collections.abc import Iterator

import pytest
from django.db import migrations, models
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation
from django.db.models import NOT_PROVIDED

APPS = "stillhouse."
FIRST_RELEASE = {
    "accounts": 2,
    "adapters": 1,
    "approvals": 2,
    "audit": 2,
    "catalog": 2,
    "datasets": 3,
    "evaluations": 1,
    "jobs": 3,
    "publishing": 3,
    "serving": 2,
    "training": 3,
    "usage": 2,
}
"""The newest migration of each app that no earlier version has to live with."""
REMOVES = (
    migrations.DeleteModel,
    migrations.RemoveField,
    migrations.RenameField,
    migrations.RenameModel,
    migrations.AlterModelTable,
)


def complaint(operation: Operation) -> str:
    """Why a process of the version before could not go on after it; empty when it could."""
    if isinstance(operation, REMOVES):
        return "removes or renames what the version before still reads"
    if isinstance(operation, migrations.AddField):
        field = operation.field
        fills_itself = field.null or field.many_to_many or field.db_default is not NOT_PROVIDED
        return "" if fills_itself else "the version before cannot insert rows: give it db_default or null"
    return ""


def of_ours() -> Iterator[tuple[str, Operation]]:
    for (app, name), migration in sorted(MigrationLoader(None).disk_migrations.items()):
        ours = type(migration).__module__.startswith(APPS)
        if ours and int(name[:4]) > FIRST_RELEASE.get(app, 0):
            yield from ((f"{app}.{name}", operation) for operation in migration.operations)


def test_the_version_before_works_with_every_migration() -> None:
    seen = list(of_ours())
    assert "accounts.0003_local_only" in {name for name, _ in seen}
    complaints = [
        f"{name}: {operation.describe()}: {why}" for name, operation in seen if (why := complaint(operation))
    ]
    assert complaints == []


@pytest.mark.parametrize(
    ("operation", "fine"),
    [
        (migrations.RemoveField("job", "state"), False),
        (migrations.RenameField("job", "state", "status"), False),
        (migrations.DeleteModel("Job"), False),
        (migrations.AddField("job", "colour", models.TextField()), False),
        (migrations.AddField("job", "colour", models.TextField(default="")), False),
        (migrations.AddField("job", "colour", models.TextField(db_default="")), True),
        (migrations.AddField("job", "colour", models.TextField(null=True)), True),
        (migrations.CreateModel("Thing", []), True),
    ],
    ids=lambda value: value.describe() if isinstance(value, Operation) else "",
)
def test_what_is_complained_about(operation: Operation, fine: bool) -> None:
    assert (complaint(operation) == "") is fine
