"""Lists as OpenAI's clients page through them: `limit` things after the one they saw last."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest, JsonResponse

from stillhouse.core.errors import NotFound, UserError

M = TypeVar("M", bound=Model)
USUAL, MOST = 20, 100


def page_of(
    request: HttpRequest, found: QuerySet[M], shape: Callable[[M], dict[str, Any]], what: str
) -> JsonResponse:
    """The rows of `found` after `?after=`, newest first (`?order=asc`: oldest first)."""
    rising = request.GET.get("order", "desc") == "asc"
    ordered = found.order_by("created_at", "pk") if rising else found.order_by("-created_at", "-pk")
    if after := request.GET.get("after"):
        last = found.filter(pk=after).first()
        if last is None:
            raise NotFound(what)
        moment, side = last.created_at, "gt" if rising else "lt"  # type: ignore[attr-defined]
        ordered = ordered.filter(
            Q(**{f"created_at__{side}": moment}) | Q(created_at=moment, **{f"pk__{side}": last.pk})
        )
    limit = limit_of(request)
    rows = list(ordered[: limit + 1])
    return listed([shape(row) for row in rows[:limit]], has_more=len(rows) > limit)


def limit_of(request: HttpRequest) -> int:
    """`?limit=`, from 1 to `MOST`."""
    given = request.GET.get("limit", str(USUAL))
    if not given.isascii() or not given.isdigit() or not 1 <= int(given) <= MOST:
        raise UserError(
            "invalid_value", f"limit is {given[:20]!r}.", "limit", f"Give a number from 1 to {MOST}."
        )
    return int(given)


def listed(data: Sequence[dict[str, Any]], *, has_more: bool) -> JsonResponse:
    return JsonResponse(
        {
            "object": "list",
            "data": list(data),
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": has_more,
        }
    )
