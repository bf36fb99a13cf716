"""The trail: appended to, never changed, and a change by force shows."""

import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction

from stillhouse.accounts.models import Workspace
from stillhouse.audit.actions import record
from stillhouse.audit.models import AuditEvent
from stillhouse.audit.queries import events, verify_chain
from tests.world import World

pytestmark = pytest.mark.django_db


def write(world: World, count: int = 3) -> Workspace:
    workspace = world.expert.workspace
    for number in range(count):
        with transaction.atomic():
            record(
                workspace=workspace,
                by=world.expert.user,
                action="thing.done",
                object_id=f"thing_{number}",
                object_name="Ünïcode ✓",
                details={
                    "number": number,
                    "rate": 1e-4,
                    "huge": 1e300,
                    "not": float("nan"),
                    "nested": {"b": [1, None], "a": "é"},
                },
            )
    return workspace


def test_a_written_chain_is_whole_and_numbered_without_gaps(world: World) -> None:
    workspace = write(world)
    sequences = list(AuditEvent.objects.filter(workspace=workspace).values_list("sequence", flat=True))
    assert sequences == list(range(1, len(sequences) + 1)) and verify_chain(workspace) is None
    event = AuditEvent.objects.filter(workspace=workspace).latest("sequence")
    assert event.actor_name == "Erin <erin@acme.example>" and event.details["rate"] == "0.0001"


def test_each_workspace_has_its_own_chain(world: World) -> None:
    write(world)
    assert {event.workspace_id for event in events(world.outsider)} == {world.outsider.workspace_id}
    assert verify_chain(world.outsider.workspace) is None


def test_what_is_rolled_back_was_never_recorded(world: World) -> None:
    workspace = write(world)
    before = AuditEvent.objects.count()
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        record(workspace=workspace, by=None, action="thing.undone", object_id="x")
        raise ZeroDivisionError
    assert AuditEvent.objects.count() == before and verify_chain(workspace) is None


@pytest.mark.parametrize(
    "statement", ["UPDATE audit_auditevent SET action = 'x'", "DELETE FROM audit_auditevent"]
)
def test_the_database_refuses_changes(world: World, statement: str) -> None:
    write(world)
    with (
        pytest.raises(IntegrityError, match="append-only"),
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute(statement)


def tamper(change: Callable[[Any], object]) -> None:
    """What somebody who owns the tables can do: switch the trigger off, change rows, switch it on again."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("ALTER TABLE audit_auditevent DISABLE TRIGGER USER")
        change(cursor)
        cursor.execute("ALTER TABLE audit_auditevent ENABLE TRIGGER USER")


@pytest.mark.parametrize(
    "assignment",
    [
        "action = 'thing.undone'",
        "details = jsonb_set(details, '{number}', '7')",
        "at = at + interval '1 microsecond'",
        "actor_id = NULL",
        "actor_name = 'Somebody else'",
        "object_id = 'thing_9'",
        "object_name = ''",
        "previous_hash = repeat('0', 64)",
        "hash = repeat('a', 64)",
    ],
)
def test_a_change_by_force_breaks_the_chain_there(world: World, assignment: str) -> None:
    workspace = write(world, 5)
    last = AuditEvent.objects.filter(workspace=workspace).latest("sequence").sequence
    where = "WHERE workspace_id = %s AND sequence = %s"
    tamper(
        lambda cursor: cursor.execute(
            f"UPDATE audit_auditevent SET {assignment} {where}", [workspace.pk, last - 2]
        )
    )
    assert verify_chain(workspace) == last - 2


def test_a_removed_event_breaks_the_chain_there(world: World) -> None:
    workspace = write(world, 5)
    sql = "DELETE FROM audit_auditevent WHERE workspace_id = %s AND sequence = 4"
    tamper(lambda cursor: cursor.execute(sql, [workspace.pk]))
    assert verify_chain(workspace) == 4


def run_verify() -> tuple[list[dict[str, Any]], int]:
    out = io.StringIO()
    try:
        call_command("audit", "verify", stdout=out)
    except SystemExit as error:
        return json.loads(out.getvalue()), int(error.code or 0)
    return json.loads(out.getvalue()), 0


def test_the_command_tells_whole_from_broken(world: World) -> None:
    workspace = write(world)
    verdicts, status = run_verify()
    assert status == 0 and {verdict["workspace"]: verdict["whole"] for verdict in verdicts} == {
        "acme": True,
        "globex": True,
    }
    tamper(lambda cursor: cursor.execute("UPDATE audit_auditevent SET action = 'x' WHERE sequence = 2"))
    verdicts, status = run_verify()
    [acme] = [verdict for verdict in verdicts if verdict["workspace"] == workspace.slug]
    assert status == 1 and acme["broken_at"] == 2 and not acme["whole"]


@pytest.mark.django_db(transaction=True)
def test_many_at_once_still_make_one_chain(world: World) -> None:
    workspace = world.expert.workspace
    before = AuditEvent.objects.filter(workspace=workspace).count()

    def append(number: int) -> None:
        try:
            with transaction.atomic():
                record(workspace=workspace, by=None, action="thing.done", object_id=str(number))
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append, range(40)))
    assert AuditEvent.objects.filter(workspace=workspace).count() == before + 40
    assert verify_chain(workspace) is None
