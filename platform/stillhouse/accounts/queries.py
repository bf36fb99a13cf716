"""Reads that more than one place needs."""

from django.db.models import QuerySet
from django.utils import timezone

from stillhouse.accounts.access import memberships_of
from stillhouse.accounts.keys import digest_of, looks_valid
from stillhouse.accounts.models import ApiKey, Membership
from stillhouse.core.errors import NotFound, UserError


def keys(by: Membership) -> QuerySet[ApiKey]:
    """The workspace's keys, newest first, revoked ones included."""
    return ApiKey.objects.filter(workspace=by.workspace).select_related("created_by").order_by("-created_at")


def get_key(by: Membership, key_id: str) -> ApiKey:
    """One key of the member's workspace; NotFound for any other."""
    key = keys(by).filter(pk=key_id).first()
    if key is None:
        raise NotFound("key")
    return key


def member_of_key(secret: str, scope: str) -> Membership:
    """The membership that a key stands for: its maker's, with the role that the maker has now.

    Raises UserError `invalid_api_key` (401) for a key that is wrong, revoked or expired, `missing_scope`
    (403) for one that is not for this, and `key_without_owner` (403) when its maker has left the workspace.
    """
    key = ApiKey.objects.filter(digest=digest_of(secret)).first() if looks_valid(secret) else None
    if key is None or key.revoked_at or (key.expires_at and key.expires_at <= timezone.now()):
        raise UserError(
            "invalid_api_key",
            "The API key is missing, wrong, revoked or expired.",
            next_step="Send a key from the page API keys as `Authorization: Bearer sk-sh-…`.",
            status=401,
        )
    if scope not in key.scopes:
        raise UserError(
            "missing_scope",
            f"The key {key.name} is not for {scope}.",
            next_step="Ask a lead to change what it may do on the page API keys.",
            status=403,
        )
    membership = memberships_of(key.created_by).filter(workspace=key.workspace_id).first()
    if membership is None:
        raise UserError(
            "key_without_owner",
            f"The key {key.name} acts for somebody who has left the workspace.",
            next_step="Ask a lead for a new key.",
            status=403,
        )
    return membership
