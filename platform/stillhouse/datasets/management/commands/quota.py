"""`manage.py quota WORKSPACE [--bytes N | --default]`: how much data a workspace may store."""

from typing import Any

from django.core.management.base import CommandParser

from stillhouse.accounts.models import Workspace
from stillhouse.core.command import JsonCommand
from stillhouse.core.errors import NotFound
from stillhouse.datasets.quota import room_of, set_quota


class Command(JsonCommand):
    help = "Show or set how many bytes of data a workspace may store. Prints JSON."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("workspace", metavar="WORKSPACE", help="slug")
        change = parser.add_mutually_exclusive_group()
        change.add_argument("--bytes", type=int, help="let it store so many")
        change.add_argument("--default", action="store_true", help="as DATA_QUOTA_BYTES says")

    def run(self, **options: Any) -> object:
        workspace = Workspace.objects.filter(slug=options["workspace"]).first()
        if workspace is None:
            raise NotFound("workspace")
        if options["default"] or options["bytes"] is not None:
            set_quota(workspace, options["bytes"])
            workspace.refresh_from_db()
        room = room_of(workspace)
        return {
            "workspace": workspace.slug,
            "used": room.used,
            "limit": room.limit,
            "left": room.left,
            "own": workspace.data_quota_bytes is not None,
        }
