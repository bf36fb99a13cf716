"""manage.py backup: database and objects, consistent with each other, into a folder."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from stillhouse.core.backup import back_up
from stillhouse.core.command import JsonCommand


class Command(JsonCommand):
    help = "Write database and objects into a folder. The platform may go on meanwhile."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")

    def run(self, **options: Any) -> object:
        made = back_up(options["out"])
        return {"folder": str(options["out"]), "objects": len(made.objects), "bytes": made.size}
