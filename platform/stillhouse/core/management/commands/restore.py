"""manage.py restore: a backup into an empty platform."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management import call_command

from stillhouse.core.backup import restore
from stillhouse.core.command import JsonCommand


class Command(JsonCommand):
    help = "Verify a backup and bring it into an empty platform. It needs the SECRET_KEY of the old one."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--from", dest="source", type=Path, required=True, metavar="DIR")
        parser.add_argument("--replace", action="store_true", help="give up what this platform holds")

    def run(self, **options: Any) -> object:
        brought = restore(options["source"], replace=options["replace"])
        call_command("migrate", interactive=False, verbosity=0)
        return {
            "made_at": brought.made_at.isoformat(),
            "objects": len(brought.objects),
            "bytes": brought.size,
        }
