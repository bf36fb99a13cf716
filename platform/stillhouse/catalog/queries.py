"""Reads of the catalog. Bases belong to the site: every workspace sees them all."""

from django.db.models import QuerySet

from stillhouse.catalog.models import BaseModel
from stillhouse.core.errors import UserError


def bases() -> QuerySet[BaseModel]:
    """All bases, the smallest first."""
    return BaseModel.objects.all()


def get_base(base_id: str) -> BaseModel:
    """The base of that id; raises UserError `unknown_base`."""
    try:
        return BaseModel.objects.get(pk=base_id)
    except BaseModel.DoesNotExist:
        raise UserError(
            "unknown_base",
            f"There is no base {base_id[:80]!r} in the catalog.",
            "base",
            "Choose one of the bases listed on the bases page.",
        ) from None
