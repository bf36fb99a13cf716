"""A dataset version looked at closely: as a base sees its rows, and beside another version."""

from collections.abc import Iterator
from typing import Any, cast, get_args

from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import render

from stillhouse.accounts.models import Membership
from stillhouse.catalog.queries import bases
from stillhouse.core.errors import UserError
from stillhouse.datasets.comparing import request_comparison
from stillhouse.datasets.models import DatasetVersion
from stillhouse.datasets.queries import get_version, trainable, version_by_id
from stillhouse.training.previews import SHOWN, request_preview
from stillhouse.web.access import in_workspace, is_htmx
from stillhouse.web.views.dataset_notes import with_comments
from workers.contract import ThinkPolicy

POLICY_WORDS = {
    "traces": "Reasoning and answer",
    "answer_only": "Answer alone, reasoning shown",
    "no_think": "Answer without reasoning",
}
SHORTEST, DEFAULT_LIMIT, LONGEST = 16, 2048, 1_000_000
BARS = 40


@in_workspace("GET")
def dataset_as_seen(request: HttpRequest, by: Membership, id: str, number: int) -> HttpResponse:
    """Rows rendered with a base's template; asked for the first time, a worker is sent to do it."""
    version = get_version(by, id, number)
    available = [base for base in bases() if base.available]
    wanted = request.GET.get("base", "")
    base = next((each for each in available if wanted in ("", each.pk)), None)
    policy = request.GET.get("policy", "traces")
    context: dict[str, Any] = {
        "version": version,
        "bases": available,
        "base": base,
        "policy": policy,
        "policies": POLICY_WORDS,
        "limit": _number(request.GET, "limit", DEFAULT_LIMIT, SHORTEST),
        "first_row": _number(request.GET, "row", 0, 0),
        "shown": SHOWN,
    }
    if policy not in get_args(ThinkPolicy):
        raise UserError("unknown_policy", "No such way to learn is known.", "policy", "Choose another one.")
    if base is not None:
        preview = request_preview(
            by=by,
            version=version,
            base=base,
            policy=cast(ThinkPolicy, policy),
            max_length=context["limit"],
            first_row=context["first_row"],
        )
        context |= {
            "job": preview.job,
            "found": preview.body,
            "bars": token_bars(preview.body, context["limit"]),
        }
        context["rows"] = with_comments(version, map(numbered, (preview.body or {}).get("rows", [])))
    template = "datasets/_as_seen.html" if is_htmx(request) else "datasets/as_seen.html"
    return render(request, template, context)


def numbered(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a preview whose samples know which answer they are, and how many before them are left out."""
    left_out, samples = row.get("left_out", 0), row["samples"]
    half = len(samples) // 2 if left_out else len(samples)
    samples = [
        {**sample, "number": at + 1 + (left_out if at >= half else 0), "gap": left_out if at == half else 0}
        for at, sample in enumerate(samples)
    ]
    return {**row, "samples": samples}


@in_workspace("GET")
def dataset_diff(request: HttpRequest, by: Membership, id: str, number: int) -> HttpResponse:
    """The version beside an earlier one; asked for the first time, a worker is sent to compare them."""
    after = get_version(by, id, number)
    before = version_by_id(by, request.GET["with"]) if request.GET.get("with") else _before(by, after)
    context: dict[str, Any] = {
        "before": before,
        "after": after,
        "others": trainable(by).exclude(pk=after.pk)[:50],
    }
    if before is not None:
        comparison = request_comparison(by=by, before=before, after=after)
        context |= {"job": comparison.job, "found": comparison.body, "figures": _figures(before, after)}
    template = "datasets/_diff.html" if is_htmx(request) else "datasets/diff.html"
    return render(request, template, context)


def _before(by: Membership, version: DatasetVersion) -> DatasetVersion | None:
    """What a version is compared with when nobody says: what it was made from, else the one before it."""
    source = version.sources.select_related("parent__dataset").first()
    if source is not None:
        return source.parent
    earlier = trainable(by).filter(dataset=version.dataset_id, number__lt=version.number)
    return earlier.order_by("-number").first()


def _number(given: QueryDict, name: str, default: int, least: int) -> int:
    text = given.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or not least <= int(text) <= LONGEST:
        raise UserError(
            "bad_number", f"{text[:20]!r} is no number from {least} to {LONGEST:,}.", name, "Change it."
        )
    return int(text)


def token_bars(body: dict[str, Any] | None, limit: int) -> list[tuple[int, int, int]]:
    """The histogram of sample lengths in at most BARS bars of equal width: upper end in tokens, samples
    up to the limit, samples beyond it.
    """
    bins = ((body or {}).get("counts") or {}).get("bins", [])
    longest = max((each["longest"] for each in bins), default=0)
    width = next((step for step in _round_numbers() if step * BARS >= longest), 1)
    bars = [[upper, 0, 0] for upper in range(width, longest + width, width)]
    for each in bins:
        bars[(each["longest"] - 1) // width][1 + (each["longest"] > limit)] += each["samples"]
    return [(upper, within, beyond) for upper, within, beyond in bars]


def _round_numbers() -> Iterator[int]:
    """1, 2, 5, 10, 20, …"""
    return (digit * 10**power for power in range(12) for digit in (1, 2, 5))


def _figures(before: DatasetVersion, after: DatasetVersion) -> list[tuple[str, object, object]]:
    """Statistics side by side: words, before, after."""
    one, other = before.report.body, after.report.body
    rows = [
        ("Usable rows", one["valid"], other["valid"]),
        ("Answers", one.get("turns", 0), other.get("turns", 0)),
        ("Characters", one.get("characters", 0), other.get("characters", 0)),
        ("Rows with reasoning", one.get("with_reasoning", 0), other.get("with_reasoning", 0)),
        ("Warnings", one["warning_count"], other["warning_count"]),
    ]
    doctors = [body.get("doctor") or {} for body in (one, other)]
    for name, words in (("exact_duplicates", "Repeated exactly"), ("near_duplicates", "Almost the same")):
        rows.append((words, *(doctor.get(name, 0) for doctor in doctors)))
    return rows
