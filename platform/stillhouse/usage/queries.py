"""Reads of usage: sums over a period, and the month that budgets are counted by."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from django.db.models import Count, F, QuerySet, Sum
from django.db.models.functions import TruncDay
from django.utils import timezone

from stillhouse.accounts.models import Membership
from stillhouse.usage.models import UsageHour, UsageRecord

Grouping = Literal["key", "alias", "version"]
_FIELDS: dict[Grouping, str] = {"key": "caller", "alias": "alias", "version": "served"}
_SUMS = ("requests", "failed", "cancelled", "prompt_tokens", "completion_tokens", "reasoning_tokens")


@dataclass(frozen=True)
class Total:
    """Sums of one key, alias or version; `name` is the caller's id, the alias or the serving name."""

    name: str
    requests: int
    failed: int
    cancelled: int
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    mean_ms: float

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Series:
    """One line of a plot: requests and tokens at each of the times."""

    name: str
    requests: list[int]
    tokens: list[int]


def hours(by: Membership, *, days: int, shadow: bool = False) -> QuerySet[UsageHour]:
    """The workspace's hours of the last `days` days."""
    since = _steps(days)[0]
    return UsageHour.objects.filter(workspace=by.workspace, hour__gte=since, shadow=shadow)


def totals(by: Membership, *, days: int, group: Grouping, shadow: bool = False) -> list[Total]:
    """By key, alias or version, the busiest first."""
    field = _FIELDS[group]
    sums = {name: Sum(name) for name in (*_SUMS, "total_ms")}
    rows: Any = (
        hours(by, days=days, shadow=shadow)
        .values(name=F(field))
        .annotate(**sums)
        .order_by("-requests", "name")
    )
    return [
        Total(
            name=row["name"],
            mean_ms=row["total_ms"] / row["requests"] if row["requests"] else 0.0,
            **{name: row[name] for name in _SUMS},
        )
        for row in rows
    ]


def series(
    by: Membership, *, days: int, group: Grouping, names: list[str]
) -> tuple[list[datetime], list[Series]]:
    """The named lines over the period, by the hour for a day and by the day for longer; empty steps are 0."""
    steps = _steps(days)
    field, places = _FIELDS[group], {at: place for place, at in enumerate(steps)}
    rows = hours(by, days=days).filter(**{f"{field}__in": names})
    at = F("hour") if days == 1 else TruncDay("hour")
    sums = {"requests_sum": Sum("requests"), "tokens_sum": Sum(F("prompt_tokens") + F("completion_tokens"))}
    lines = {name: Series(name, [0] * len(steps), [0] * len(steps)) for name in names}
    grouped: Any = rows.values(name=F(field), at=at).annotate(**sums)
    for row in grouped:
        if (place := places.get(row["at"])) is not None:
            lines[row["name"]].requests[place] += row["requests_sum"]
            lines[row["name"]].tokens[place] += row["tokens_sum"]
    return steps, list(lines.values())


def _steps(days: int) -> list[datetime]:
    """Beginnings of the hours (one day) or days of the period that ends now, in UTC."""
    now = timezone.now()
    step, last = (
        (timedelta(hours=1), now.replace(minute=0, second=0, microsecond=0))
        if days == 1
        else (timedelta(days=1), now.replace(hour=0, minute=0, second=0, microsecond=0))
    )
    count = 24 if days == 1 else days
    return [last - step * back for back in range(count - 1, -1, -1)]


def tokens_this_month(by: Membership) -> dict[str, int]:
    """Tokens of the calendar month (UTC) by key, as budgets count them."""
    month = timezone.now().replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    rows = UsageHour.objects.filter(workspace=by.workspace, hour__gte=month, shadow=False).exclude(key="")
    sums = rows.values("key").annotate(tokens=Sum(F("prompt_tokens") + F("completion_tokens")))
    return {row["key"]: row["tokens"] for row in sums}


@dataclass(frozen=True)
class AliasMonth:
    """What an alias answered in the calendar month (UTC), here and by a remote model."""

    requests: int
    escalated: int
    """Of them, answered by a remote model."""
    reasons: list[tuple[str, int]]
    """Why, the most frequent first."""
    prompt_tokens: int
    completion_tokens: int
    cost: int
    """In billionths of the currency's unit."""


def alias_month(by: Membership, alias: str) -> AliasMonth:
    """The alias's month, without copies and attempts that nobody saw."""
    month = timezone.now().replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    mine = UsageHour.objects.filter(workspace=by.workspace, alias=alias, hour__gte=month, shadow=False)
    names = ("requests", "escalated", "prompt_tokens", "completion_tokens", "cost")
    sums = mine.aggregate(**{name: Sum(name, default=0) for name in names})
    outside = UsageRecord.objects.filter(workspace=by.workspace, alias=alias, at__gte=month, shadow=False)
    reasons = outside.exclude(escalation="").values_list("escalation").annotate(count=Count("pk"))
    return AliasMonth(reasons=list(reasons.order_by("-count", "escalation")), **sums)


def shadow_totals(by: Membership, *, days: int) -> list[Total]:
    """What shadow copies cost, by version."""
    return totals(by, days=days, group="version", shadow=True)
