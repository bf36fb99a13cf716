"""`manage.py rollback ALIAS --as EMAIL`: let an alias answer with what it answered with before."""

from typing import Any

from django.core.management.base import CommandParser

from stillhouse.accounts.command import MemberCommand
from stillhouse.accounts.models import Membership
from stillhouse.publishing.actions import rollback
from stillhouse.publishing.management.commands.publish import as_json
from stillhouse.publishing.queries import get_alias


class Command(MemberCommand):
    help = "Roll an alias back to its previous version. Prints JSON."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("alias", metavar="ALIAS", help="name or id")

    def run_as(self, by: Membership, **options: Any) -> object:
        return as_json(rollback(by=by, alias=get_alias(by, options["alias"])))
