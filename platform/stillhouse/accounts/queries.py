"""Reads that more than one place needs."""

from django.db.models import QuerySet

from stillhouse.accounts.models import ApiKey, Membership
from stillhouse.core.errors import NotFound


def keys(by: Membership) -> QuerySet[ApiKey]:
    """The workspace's keys, newest first, revoked ones included."""
    return ApiKey.objects.filter(workspace=by.workspace).select_related("created_by").order_by("-created_at")


def get_key(by: Membership, key_id: str) -> ApiKey:
    """One key of the member's workspace; NotFound for any other."""
    key = keys(by).filter(pk=key_id).first()
    if key is None:
        raise NotFound("key")
    return key
