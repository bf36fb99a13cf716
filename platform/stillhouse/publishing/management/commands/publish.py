"""`manage.py publish ALIAS VERSION --as EMAIL`: let an alias answer with a version."""

from typing import Any

from django.core.management.base import CommandParser

from stillhouse.accounts.command import MemberCommand
from stillhouse.accounts.models import Membership
from stillhouse.adapters.queries import get_version
from stillhouse.publishing.actions import publish_once_loaded
from stillhouse.publishing.models import Publication


class Command(MemberCommand):
    help = "Publish an approved version under an alias. Prints JSON."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("alias", metavar="ALIAS", help="the name that apps send as model")
        parser.add_argument("version", metavar="VERSION", help="id or serving name")

    def run_as(self, by: Membership, **options: Any) -> object:
        version = get_version(by, options["version"])
        return as_json(publish_once_loaded(by=by, alias_name=options["alias"], version=version))


def as_json(publication: Publication) -> dict[str, object]:
    return {
        "id": publication.id,
        "alias": publication.alias.name,
        "sequence": publication.sequence,
        "kind": publication.kind,
        "version": publication.version_id,
        "name": publication.version.serving_name,
        "shares": [
            {"name": share.version.serving_name, "percent": share.percent, "shadow": share.shadow}
            for share in publication.shares.select_related("version__adapter")
        ],
        "created_by": publication.created_by.email,
        "created_at": publication.created_at,
    }
