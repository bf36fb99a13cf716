"""manage.py audit verify: whether the trail is whole. JSON out; exit status 1 when a chain is broken."""

import json
import sys
from typing import Any

from django.core.management.base import CommandParser

from stillhouse.accounts.models import Workspace
from stillhouse.audit.models import AuditEvent
from stillhouse.audit.queries import verify_chain
from stillhouse.core.command import JsonCommand
from stillhouse.core.errors import NotFound


class Command(JsonCommand):
    help = "Verify every audit chain. Note the heads outside this machine, to notice a cut-off end."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        verify = actions.add_parser("verify")
        verify.add_argument("--workspace", default="", metavar="SLUG")

    def run(self, **options: Any) -> object:
        workspaces = Workspace.objects.order_by("slug")
        if options["workspace"]:
            workspaces = workspaces.filter(slug=options["workspace"])
            if not workspaces:
                raise NotFound("workspace")
        verdicts = [_verdict(workspace) for workspace in workspaces]
        if all(verdict["whole"] for verdict in verdicts):
            return verdicts
        self.stdout.write(json.dumps(verdicts, indent=2))
        sys.exit(1)


def _verdict(workspace: Workspace) -> dict[str, Any]:
    broken = verify_chain(workspace)
    head = AuditEvent.objects.filter(workspace=workspace).order_by("-sequence").first()
    return {
        "workspace": workspace.slug,
        "whole": broken is None,
        "broken_at": broken,
        "events": head.sequence if head else 0,
        "head": head.hash if head else "",
    }
