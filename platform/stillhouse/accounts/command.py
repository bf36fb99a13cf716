"""Management commands that act as a member: `--as EMAIL [--workspace SLUG]`.

Whoever may run them has the machine; the trail names the member they acted as.
"""

from typing import Any

from django.core.management.base import CommandParser

from stillhouse.accounts.access import membership_for, memberships_of
from stillhouse.accounts.models import Membership, User
from stillhouse.core.command import JsonCommand
from stillhouse.core.errors import NotFound, UserError


class MemberCommand(JsonCommand):
    """Subclasses implement `run_as`; the same actions and rules hold as on the pages."""

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--as", dest="email", required=True, metavar="EMAIL", help="the member to act as")
        parser.add_argument(
            "--workspace", metavar="SLUG", help="needed when the member is in several workspaces"
        )

    def run(self, **options: Any) -> object:
        return self.run_as(_member(options["email"], options["workspace"]), **options)

    def run_as(self, by: Membership, **options: Any) -> object:
        raise NotImplementedError


def _member(email: str, slug: str | None) -> Membership:
    user = User.objects.filter(email=email.strip().lower()).first()
    if user is None:
        raise NotFound("member")
    if slug:
        return membership_for(user, slug)
    memberships = list(memberships_of(user))
    if not memberships:
        raise NotFound("member")
    if len(memberships) > 1:
        slugs = ", ".join(membership.workspace.slug for membership in memberships)
        raise UserError(
            "which_workspace",
            f"{user.email} is in several workspaces: {slugs}.",
            "--workspace",
            "Name one of them.",
        )
    return memberships[0]
