"""Names that become part of what engines and apps see."""

import re

from stillhouse.catalog.models import BaseModel
from stillhouse.core.errors import UserError

_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,58}[a-z0-9])?")


def check_slug(name: str, *, place: str) -> str:
    """A name that travels in URLs, file names and requests; raises UserError `bad_name`."""
    if not _SLUG.fullmatch(name):
        raise UserError(
            "bad_name",
            f"{name[:60]!r} cannot be a name here.",
            place,
            "Use up to 60 lower-case letters, digits and inner dashes, as in contract-clauses.",
        )
    return name


def check_model_name(name: str, *, place: str) -> str:
    """A name for an adapter or an alias, which apps send as `model`: also raises `name_taken_by_base`.

    A slug has no `@`, which is what separates an adapter's name from a digest.
    """
    check_slug(name, place=place)
    if BaseModel.objects.filter(pk=name).exists():
        raise UserError(
            "name_taken_by_base", f"{name!r} is the name of a base.", place, "Choose another name."
        )
    return name
