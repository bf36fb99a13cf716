"""Writes: workspaces, members and keys."""

from dataclasses import asdict
from datetime import datetime
from typing import Any

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.validators import validate_email, validate_slug
from django.db import transaction
from django.utils import timezone

from stillhouse.accounts.access import require
from stillhouse.accounts.keys import SCOPES, KeyTerms, make_key
from stillhouse.accounts.models import ApiKey, Membership, Role, User, Workspace
from stillhouse.audit.actions import record
from stillhouse.core.errors import NotFound, UserError
from stillhouse.core.notify import GATEWAY, notify
from stillhouse.core.text import clean_name

_HIGHEST = {"requests_per_minute": 10**6, "tokens_per_minute": 10**9, "monthly_tokens": 10**15}


@transaction.atomic
def create_workspace(*, name: str, slug: str, by: User | None = None) -> Workspace:
    """Make a workspace; the one with this slug when it is there already."""
    try:
        validate_slug(slug)
    except ValidationError as error:
        raise UserError(
            "bad_slug",
            f"{slug[:60]!r} cannot be part of an address.",
            place="slug",
            next_step="Use lower-case letters, digits and dashes.",
        ) from error
    workspace, made = Workspace.objects.get_or_create(
        slug=slug, defaults={"name": clean_name(name, what="workspace name")}
    )
    if made:
        record(
            workspace=workspace,
            by=by,
            action="workspace.created",
            object_id=workspace.pk,
            object_name=workspace.name,
        )
    return workspace


@transaction.atomic
def add_member(
    *, workspace: Workspace, email: str, password: str | None, name: str, role: str, by: User | None = None
) -> Membership:
    """Make somebody a member with this role; the person's account is made when there is none for the e-mail.

    An existing account keeps its password and name: a workspace must not be able to take over somebody who is
    also in another one. Use `set_password` for that.
    """
    address, known_role = _checked_email(email), _checked_role(role)
    user = User.objects.filter(email=address).first()
    if user is None:
        _check_password(password)
        user = User.objects.create_user(
            address, password, name=clean_name(name or address, what="person's name")
        )
    membership, made = Membership.objects.get_or_create(
        user=user, workspace=workspace, defaults={"role": known_role}
    )
    if not made and membership.role == known_role:
        return membership
    if not made:
        membership.role = known_role
        membership.save(update_fields=["role"])
    record(
        workspace=workspace,
        by=by,
        action="member.added" if made else "member.role_changed",
        object_id=user.pk,
        object_name=user.email,
        details={"role": known_role},
    )
    return membership


@transaction.atomic
def set_password(*, user: User, password: str, by: User | None = None) -> None:
    """Give somebody a new password; recorded in every workspace the person belongs to."""
    _check_password(password)
    user.set_password(password)
    user.save(update_fields=["password"])
    for membership in user.memberships.select_related("workspace"):
        record(
            workspace=membership.workspace,
            by=by,
            action="member.password_set",
            object_id=user.pk,
            object_name=user.email,
        )


@transaction.atomic
def create_key(*, by: Membership, name: str, terms: KeyTerms | None = None) -> tuple[ApiKey, str]:
    """Make an app's key; returns it with its secret, which exists nowhere else and is shown once.

    Without `terms` it may do everything an app may, without limits. Raises UserError `not_allowed`,
    `bad_scope`, `bad_limit` or `bad_expiry`.
    """
    require(by, "key.manage")
    terms = terms or KeyTerms()
    _check_terms(terms)
    made = make_key()
    key = ApiKey.objects.create(
        workspace=by.workspace,
        name=clean_name(name, what="key's name"),
        prefix=made.prefix,
        digest=made.digest,
        created_by=by.user,
        **_fields(terms),
    )
    _record_terms(by, key, "key.created")
    return key, made.secret


@transaction.atomic
def change_key(*, by: Membership, key: ApiKey, terms: KeyTerms) -> ApiKey:
    """Give a key other terms, from its app's next request on.

    Raises NotFound, UserError `not_allowed`, `key_revoked`, or as `create_key`.
    """
    if key.workspace_id != by.workspace_id:
        raise NotFound("key")
    require(by, "key.manage")
    # An expiry that has passed may stay, or the form of an expired key could not be sent at all.
    _check_terms(terms, kept_expiry=key.expires_at)
    if not ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(**_fields(terms)):
        raise UserError(
            "key_revoked", f"{key.name} is revoked for good.", "key", "Create another key.", status=409
        )
    key.refresh_from_db()
    _record_terms(by, key, "key.changed")
    return key


def _fields(terms: KeyTerms) -> dict[str, Any]:
    return {**asdict(terms), "scopes": sorted(terms.scopes)}


def _record_terms(by: Membership, key: ApiKey, action: str) -> None:
    limits = {name: value for name, value in _fields(key.terms).items() if value is not None}
    if key.expires_at:
        limits["expires_at"] = key.expires_at.isoformat()
    record(
        workspace=by.workspace,
        by=by.user,
        action=action,
        object_id=key.pk,
        object_name=key.name,
        details=limits,
    )
    notify(GATEWAY)


def _check_terms(terms: KeyTerms, *, kept_expiry: datetime | None = None) -> None:
    if not terms.scopes or not terms.scopes <= set(SCOPES):
        raise UserError(
            "bad_scope", "A key is for something.", "scopes", f"Choose from: {', '.join(SCOPES)}."
        )
    if terms.expires_at and terms.expires_at != kept_expiry and terms.expires_at <= timezone.now():
        raise UserError(
            "bad_expiry",
            f"{terms.expires_at:%Y-%m-%d %H:%M} UTC has passed.",
            "expires_at",
            "Choose a day that is still to come, or leave it out.",
        )
    for name, most in _HIGHEST.items():
        value = getattr(terms, name)
        if value is not None and not 1 <= value <= most:
            raise UserError(
                "bad_limit",
                f"{value} is no limit that can be kept.",
                name,
                f"Write a whole number from 1 to {most}, or leave it empty for no limit.",
            )


@transaction.atomic
def revoke_key(*, by: Membership, key: ApiKey) -> None:
    """Make a key useless at once and for good; nothing happens to one that is revoked already."""
    if key.workspace_id != by.workspace_id:
        raise NotFound("key")
    require(by, "key.manage")
    rows = ApiKey.objects.filter(pk=key.pk, revoked_at=None)
    if not rows.update(revoked_at=timezone.now(), revoked_by=by.user):
        return
    key.refresh_from_db()
    record(workspace=by.workspace, by=by.user, action="key.revoked", object_id=key.pk, object_name=key.name)
    notify(GATEWAY)


def _checked_email(email: str) -> str:
    address = email.strip().lower()
    try:
        validate_email(address)
    except ValidationError as error:
        raise UserError(
            "bad_email",
            f"{address[:80]!r} is not an e-mail address.",
            place="email",
            next_step="Write name@host.",
        ) from error
    return address


def _checked_role(role: str) -> Role:
    if role not in Role.values:
        raise UserError(
            "unknown_role",
            f"There is no role {role[:40]!r}.",
            place="role",
            next_step=f"Use one of: {', '.join(Role.values)}.",
        )
    return Role(role)


def _check_password(password: str | None) -> None:
    try:
        validate_password(password or "")
    except ValidationError as error:
        raise UserError(
            "bad_password", " ".join(error.messages), place="password", next_step="Choose another password."
        ) from error
