"""`manage.py worker enrol|list|drain|undrain|revoke [NAME]`: the fleet, for the operator."""

from typing import Any

from django.core.management.base import CommandParser

from stillhouse.core.command import JsonCommand
from stillhouse.core.errors import UserError
from stillhouse.jobs.models import Worker
from stillhouse.jobs.workers import change_drain, make_enrolment, revoke


class Command(JsonCommand):
    help = "Make an enrolment token, list workers, drain or revoke one. Prints JSON."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("verb", choices=("enrol", "list", "drain", "undrain", "revoke"))
        parser.add_argument("name", nargs="?", default="", metavar="NAME")

    def run(self, **options: Any) -> object:
        verb, name = options["verb"], options["name"]
        if verb == "list":
            return [as_json(worker) for worker in Worker.objects.all()]
        if not name:
            raise UserError("name_missing", "No worker is named.", "name", f"manage.py worker {verb} NAME")
        if verb == "enrol":
            return {"worker": name, "token": make_enrolment(name), "valid_hours": 24}
        if verb == "revoke":
            revoke(name=name)
        else:
            change_drain(name=name, drain=verb == "drain")
        return as_json(Worker.objects.get(name=name))


def as_json(worker: Worker) -> dict[str, Any]:
    return {
        "name": worker.name,
        "queue": worker.queue,
        "slots": worker.slots,
        "contract": worker.contract,
        "enrolled": bool(worker.secret_digest),
        "seen_at": worker.seen_at,
        "draining_since": worker.draining_since,
        "revoked_at": worker.revoked_at,
        "facts": worker.facts,
    }
