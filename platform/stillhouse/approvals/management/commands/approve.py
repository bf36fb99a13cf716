"""`manage.py approve VERSION --as EMAIL [--reason TEXT] [--reject]`: decide on a version."""

from typing import Any

from django.core.management.base import CommandParser

from stillhouse.accounts.command import MemberCommand
from stillhouse.accounts.models import Membership
from stillhouse.adapters.queries import get_version
from stillhouse.approvals.actions import decide
from stillhouse.approvals.models import Decision

NO_REASON = "Decided on the command line; no reason was given there."


class Command(MemberCommand):
    help = "Approve (or reject) a version that somebody else made. Prints JSON."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("version", metavar="VERSION", help="id or serving name")
        parser.add_argument(
            "--reason", default=NO_REASON, help="a sentence for whoever reads the trail later"
        )
        parser.add_argument("--reject", action="store_true", help="reject it instead")

    def run_as(self, by: Membership, **options: Any) -> object:
        verdict = Decision.REJECTED if options["reject"] else Decision.APPROVED
        version = get_version(by, options["version"])
        decision = decide(by=by, version=version, verdict=verdict, reason=options["reason"])
        return {
            "id": decision.id,
            "version": version.id,
            "name": version.serving_name,
            "state": version.state,
            "verdict": decision.verdict,
            "reason": decision.reason,
            "decided_by": decision.decided_by.email,
            "adapter_sha256": decision.adapter_sha256,
            "data_sha256": decision.data_sha256,
            "template_sha256": decision.template_sha256,
            "evaluation_sha256": decision.evaluation_sha256,
        }
