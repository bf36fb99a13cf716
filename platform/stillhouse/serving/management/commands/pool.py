"""`manage.py pool add NAME --base ID` and `manage.py pool list`."""

from typing import Any

from django.core.management.base import CommandParser

from stillhouse.catalog.queries import get_base
from stillhouse.core.command import JsonCommand
from stillhouse.serving.actions import add_pool
from stillhouse.serving.models import Pool
from stillhouse.serving.queries import pools


class Command(JsonCommand):
    help = "Pools of engines: add one for a base, or list them with their replicas. Prints JSON."

    def add_arguments(self, parser: CommandParser) -> None:
        commands = parser.add_subparsers(dest="subcommand", required=True)
        commands.add_parser("list", help="every pool with its replicas")
        add = commands.add_parser("add", help="make a pool; agents of that name may then report")
        add.add_argument("name")
        add.add_argument("--base", required=True, help="catalog id of the base that its engines serve")

    def run(self, **options: Any) -> object:
        if options["subcommand"] == "add":
            return as_json(add_pool(name=options["name"], base=get_base(options["base"])))
        return [as_json(pool) for pool in pools()]


def as_json(pool: Pool) -> dict[str, object]:
    return {
        "name": pool.name,
        "base": pool.base_id,
        "replicas": [
            {
                "name": replica.name,
                "url": replica.url,
                "healthy": replica.healthy,
                "error": replica.error,
                "engine": replica.engine,
                "incarnation": replica.incarnation,
                "reported_at": replica.reported_at,
                "ready": replica.holdings.filter(state="ready").count(),
            }
            for replica in pool.replicas.all()
        ],
    }
