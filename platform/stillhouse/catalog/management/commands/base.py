"""`manage.py base add PATH|ID [--id ID] [--replace]` and `manage.py base list`."""

from typing import Any

from django.core.management.base import CommandParser

from stillhouse.catalog.actions import add_base
from stillhouse.catalog.models import BaseModel
from stillhouse.catalog.queries import bases
from stillhouse.core.command import JsonCommand


class Command(JsonCommand):
    help = "The bases one may train on: list them, or add the weights of one. Prints JSON."

    def add_arguments(self, parser: CommandParser) -> None:
        commands = parser.add_subparsers(dest="subcommand", required=True)
        commands.add_parser("list", help="every base of the catalog, and whether its weights are here")
        add = commands.add_parser("add", help="make a base available from a folder of weights")
        add.add_argument("source", metavar="PATH|ID", help="the folder, or its name in BASES_DIR")
        add.add_argument("--id", dest="base_id", help="catalog id, when the folder's name does not say it")
        add.add_argument("--replace", action="store_true", help="even though other weights were added before")

    def run(self, **options: Any) -> object:
        if options["subcommand"] == "add":
            return as_json(
                add_base(options["source"], base_id=options["base_id"], replace=options["replace"])
            )
        return [as_json(base) for base in bases()]


def as_json(base: BaseModel) -> dict[str, object]:
    return {
        "id": base.id,
        "name": base.name,
        "hub_id": base.hub_id,
        "licence": base.licence,
        "parameters": base.parameters,
        "context_length": base.context_length,
        "available": base.available,
        "path": base.path,
        "digest": base.digest,
        "template_sha256": base.template_sha256,
    }
