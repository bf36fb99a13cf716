"""manage.py member add | password: people, from the machine's own shell. JSON out."""

import sys
from typing import Any

from django.core.management.base import CommandParser
from django.db import transaction

from stillhouse.accounts.actions import add_member, create_workspace, set_password
from stillhouse.accounts.models import Role, User
from stillhouse.core.command import JsonCommand
from stillhouse.core.errors import NotFound, UserError


class Command(JsonCommand):
    help = "Add somebody to a workspace (both are made when missing), or set a password."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        add = actions.add_parser("add", help="make somebody a member; an existing account keeps its password")
        add.add_argument("--workspace", required=True, metavar="SLUG")
        add.add_argument("--workspace-name", default="", help="when the workspace is new; default: the slug")
        add.add_argument("--role", required=True, help=", ".join(Role.values))
        add.add_argument("--name", default="")
        password = actions.add_parser("password", help="give somebody a new password")
        for parser_ in (add, password):
            parser_.add_argument("--email", required=True)
            parser_.add_argument(
                "--password-stdin", action="store_true", help="read the password from a line of stdin"
            )

    def run(self, **options: Any) -> object:
        password = sys.stdin.readline().rstrip("\r\n") if options["password_stdin"] else None
        return (
            _add(options, password)
            if options["action"] == "add"
            else _set_password(options["email"], password)
        )


@transaction.atomic
def _add(options: dict[str, Any], password: str | None) -> object:
    slug = options["workspace"]
    workspace = create_workspace(slug=slug, name=options["workspace_name"] or slug.replace("-", " ").title())
    known = User.objects.filter(email=options["email"].strip().lower()).exists()
    membership = add_member(
        workspace=workspace,
        email=options["email"],
        password=password,
        name=options["name"],
        role=options["role"],
    )
    user = membership.user
    return {
        "id": user.pk,
        "email": user.email,
        "workspace": slug,
        "role": membership.role,
        "created": not known,
    }


def _set_password(email: str, password: str | None) -> object:
    user = User.objects.filter(email=email.strip().lower()).first()
    if user is None:
        raise NotFound("account")
    if password is None:
        raise UserError(
            "no_password", "No password was given.", "password", "Use --password-stdin and type it."
        )
    set_password(user=user, password=password)
    return {"id": user.pk, "email": user.email}
