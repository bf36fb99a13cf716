"""Who may do what: a table, and the two questions that every action asks."""

from collections.abc import Mapping
from typing import Literal

from django.contrib.auth.models import AnonymousUser
from django.db.models import QuerySet

from stillhouse.accounts.models import Membership, Role, User
from stillhouse.core.errors import NotFound, UserError

Permission = Literal[
    "dataset.upload",
    "dataset.erase",
    "run.start",
    "run.cancel",
    "approval.ask",
    "version.decide",
    "alias.publish",
    "alias.rollback",
    "alias.escalate",
    "alias.keep",
    "key.manage",
    "pool.manage",
    "replica.manage",
    "member.manage",
    "notification.manage",
]

_EVERYONE = frozenset({Role.EXPERT, Role.LEAD, Role.ADMIN})
_LEADS = frozenset({Role.LEAD, Role.ADMIN})
_ADMINS = frozenset({Role.ADMIN})

PERMISSIONS: Mapping[Permission, frozenset[Role]] = {
    "dataset.upload": _EVERYONE,
    "dataset.erase": _LEADS,
    "run.start": _EVERYONE,
    "run.cancel": _EVERYONE,
    "approval.ask": _EVERYONE,
    "version.decide": _LEADS,
    "alias.publish": _LEADS,
    "alias.rollback": _LEADS,
    "alias.escalate": _LEADS,
    "alias.keep": _LEADS,
    "key.manage": _LEADS,
    "pool.manage": _LEADS,
    "replica.manage": _ADMINS,
    "member.manage": _ADMINS,
    "notification.manage": _LEADS,
}

_IN_WORDS: Mapping[Permission, str] = {
    "dataset.upload": "upload datasets",
    "dataset.erase": "erase rows",
    "run.start": "start a training run",
    "run.cancel": "cancel a run",
    "approval.ask": "ask for approval",
    "version.decide": "approve or reject a version",
    "alias.publish": "publish a version",
    "alias.rollback": "roll an alias back",
    "alias.escalate": "let requests leave the site",
    "alias.keep": "keep prompts and answers",
    "key.manage": "make or revoke API keys",
    "pool.manage": "pin versions",
    "replica.manage": "drain replicas",
    "member.manage": "add or change members",
    "notification.manage": "set where notices are sent",
}


def memberships_of(user: User | AnonymousUser) -> QuerySet[Membership]:
    """The workspaces a person belongs to, by name."""
    if not isinstance(user, User) or not user.is_active:
        return Membership.objects.none()
    return (
        Membership.objects.filter(user=user).select_related("user", "workspace").order_by("workspace__name")
    )


def membership_for(user: User | AnonymousUser, slug: str) -> Membership:
    """The person's membership of the workspace: the credential every action takes as `by`.

    Raises NotFound for a workspace that does not exist and for one the person is not in alike.
    """
    membership = memberships_of(user).filter(workspace__slug=slug).first()
    if membership is None:
        raise NotFound("workspace")
    return membership


def may(by: Membership, permission: Permission) -> bool:
    """Whether the member's role allows it; pages use this to leave out what would be refused."""
    return by.role in PERMISSIONS[permission]


def require(by: Membership, permission: Permission) -> None:
    """Raises UserError `not_allowed` (403) unless the member's role allows it."""
    if may(by, permission):
        return
    allowed = " or ".join(role.label for role in Role if role in PERMISSIONS[permission])
    raise UserError(
        "not_allowed",
        f"As {Role(by.role).label} you may not {_IN_WORDS[permission]}.",
        place="role",
        next_step=f"Ask a member with the role {allowed} of {by.workspace.name}.",
        status=403,
    )
