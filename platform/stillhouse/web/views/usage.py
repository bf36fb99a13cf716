"""Usage: what was asked and answered, by key, alias or version."""

from typing import Any, cast

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

from stillhouse.accounts.models import Membership
from stillhouse.accounts.queries import keys as keys_of
from stillhouse.usage.queries import Grouping, Total, series, shadow_totals, totals
from stillhouse.web.access import in_workspace, wants_json

PERIODS = ((1, "24 hours"), (7, "7 days"), (30, "30 days"))
GROUPS = (("key", "By key"), ("alias", "By alias"), ("version", "By version"))
LINES = 6
"""Of a plot: more than these cannot be told apart."""


@in_workspace("GET")
def usage(request: HttpRequest, by: Membership) -> HttpResponse:
    days = _chosen(request.GET.get("days"), [str(days) for days, _ in PERIODS], "7")
    group = cast(Grouping, _chosen(request.GET.get("by"), [name for name, _ in GROUPS], "alias"))
    rows = totals(by, days=int(days), group=group)
    labels = _labels(by, group, rows)
    if wants_json(request):
        return JsonResponse({"days": int(days), "by": group, "totals": [_json(row, labels) for row in rows]})
    steps, lines = series(by, days=int(days), group=group, names=[row.name for row in rows[:LINES]])
    context = {
        "days": int(days),
        "group": group,
        "periods": PERIODS,
        "groups": GROUPS,
        "rows": [{"label": labels[row.name], "total": row} for row in rows],
        "shadows": shadow_totals(by, days=int(days)),
        "sums": {name: sum(getattr(row, name) for row in rows) for name in _SUMMED},
        "plot": {
            "times": [int(step.timestamp()) for step in steps],
            "lines": [
                {"label": labels[line.name], "requests": line.requests, "tokens": line.tokens}
                for line in lines
            ],
        },
    }
    return render(request, "usage/page.html", context)


_SUMMED = ("requests", "failed", "tokens", "reasoning_tokens")


def _chosen(value: str | None, allowed: list[str], otherwise: str) -> str:
    return value if value in allowed else otherwise


def _labels(by: Membership, group: Grouping, rows: list[Total]) -> dict[str, str]:
    """Names for people: a key's own name; what asked without a key or alias is said in words."""
    if group == "key":
        names = {key.pk: key.name for key in keys_of(by)}
        return {row.name: names.get(row.name) or _caller(row.name) for row in rows}
    nameless = "named the version itself" if group == "alias" else "nothing"
    return {row.name: row.name or nameless for row in rows}


def _caller(caller: str) -> str:
    kind = caller.partition("_")[0]
    return {"usr": "Playground", "job": "Evaluation"}.get(kind, caller) + f" {caller[-4:]}"


def _json(row: Total, labels: dict[str, str]) -> dict[str, Any]:
    return {
        "name": row.name,
        "label": labels[row.name],
        "requests": row.requests,
        "failed": row.failed,
        "cancelled": row.cancelled,
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "reasoning_tokens": row.reasoning_tokens,
        "mean_ms": round(row.mean_ms, 1),
    }
