"""`manage.py ask VERSION --as EMAIL [--note TEXT]`: ask that a version be approved."""

from typing import Any

from django.core.management.base import CommandParser

from stillhouse.accounts.command import MemberCommand
from stillhouse.accounts.models import Membership
from stillhouse.adapters.queries import get_version
from stillhouse.approvals.actions import ask_approval


class Command(MemberCommand):
    help = "Ask that an evaluated candidate be approved. Prints JSON."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("version", metavar="VERSION", help="id or serving name")
        parser.add_argument("--note", default="", help="what the reviewer should know")

    def run_as(self, by: Membership, **options: Any) -> object:
        request = ask_approval(by=by, version=get_version(by, options["version"]), note=options["note"])
        return {
            "id": request.id,
            "version": request.version_id,
            "evaluation": request.evaluation_id,
            "asked_by": request.asked_by.email,
        }
