"""`manage.py share ALIAS VERSION PERCENT --as EMAIL`: a canary, or with --shadow copies; 0 ends it."""

from typing import Any

from django.core.management.base import CommandParser

from stillhouse.accounts.command import MemberCommand
from stillhouse.accounts.models import Membership
from stillhouse.adapters.queries import get_version
from stillhouse.publishing.actions import end_canary, end_shadow, start_canary, start_shadow
from stillhouse.publishing.management.commands.publish import as_json
from stillhouse.publishing.models import Publication
from stillhouse.publishing.queries import get_alias


class Command(MemberCommand):
    help = "Let a version answer a part of an alias's requests, or only see copies of them. Prints JSON."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("alias", metavar="ALIAS", help="name or id")
        parser.add_argument("version", metavar="VERSION", help="id or serving name")
        parser.add_argument("percent", metavar="PERCENT", type=int, help="0 ends it; 100 publishes a canary")
        parser.add_argument("--shadow", action="store_true", help="copies only; nobody sees the answers")
        parser.add_argument(
            "--spread",
            choices=[Publication.BY_USER, Publication.BY_REQUEST],
            default=Publication.BY_USER,
            help="whether a user (or a key) stays with one version of a canary",
        )

    def run_as(self, by: Membership, **options: Any) -> object:
        alias, version = get_alias(by, options["alias"]), get_version(by, options["version"])
        percent: int = options["percent"]
        if percent == 0:
            return as_json((end_shadow if options["shadow"] else end_canary)(by=by, alias=alias))
        if options["shadow"]:
            return as_json(start_shadow(by=by, alias=alias, version=version, percent=percent))
        spread = options["spread"]
        return as_json(start_canary(by=by, alias=alias, version=version, percent=percent, spread=spread))
