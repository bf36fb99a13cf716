"""What the check of a dataset version found: its problems by class, as a file, and another way to read it."""

import csv
import json
from collections.abc import Iterator
from typing import Any

from django.contrib import messages
from django.core.paginator import Page, Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render

from stillhouse.accounts.models import Membership
from stillhouse.core.errors import NotFound, UserError
from stillhouse.datasets import actions
from stillhouse.datasets.models import DatasetVersion
from stillhouse.datasets.queries import get_version
from stillhouse.datasets.reports import PAGE, Checked, Kind, checked, problems
from stillhouse.training.queries import newest_held_out
from stillhouse.web.access import in_workspace
from stillhouse.web.views.dataset_notes import with_comments
from workers.contract import Mapping, items_of

ROLES = ("question", "answer", "context", "reasoning", "system", "messages")
"""What a column may be read as, in the order of the form."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
CSV_COLUMNS = ("kind", "row", "source", "field", "code", "message", "value")
PREVIEW_ROWS = 3


@in_workspace("GET")
def dataset_problems(request: HttpRequest, by: Membership, id: str, number: int) -> HttpResponse:
    """Errors or warnings of one class, or of all, page by page: a fragment of the version's page."""
    version = get_version(by, id, number)
    kind: Kind = "warnings" if request.GET.get("kind") == "warnings" else "errors"
    page, code = request.GET.get("page", "1"), request.GET.get("code", "")
    asked = int(page) if page.isdecimal() and len(page) < 7 else 1
    context = problems_context(version, _checked(version).body, kind, code, asked)
    return render(request, "datasets/_problems.html", context)


def problems_context(
    version: DatasetVersion, body: dict[str, Any], kind: Kind, code: str = "", page: int = 1
) -> dict[str, Any]:
    """What a page of a list of problems needs, with the comments on their rows."""
    found = problems(version, kind, code, page)
    counts = body.get("error_counts" if kind == "errors" else "warning_counts") or {}
    total = counts.get(code, found.listed) if code else sum(counts.values())
    shown: Page[Any] = Paginator(range(found.listed), PAGE).page(found.page)
    shown.object_list = with_comments(version, found.problems)
    return {
        "version": version,
        "kind": kind,
        "code": code,
        "counts": sorted(counts.items(), key=lambda item: -item[1]),
        "listed": found.listed,
        "total": max(total, found.listed),
        "page": shown,
    }


@in_workspace("GET")
def dataset_problems_csv(request: HttpRequest, by: Membership, id: str, number: int) -> HttpResponse:
    """Every listed problem, for a spreadsheet: cells that it would take for formulas are escaped."""
    version = get_version(by, id, number)
    body: dict[str, Any] = _checked(version).report.body
    answer = HttpResponse("".join(_csv_lines(body)), content_type="text/csv; charset=utf-8")
    name = f"problems-{version.dataset_id}-v{version.number}.csv"
    answer["Content-Disposition"] = f'attachment; filename="{name}"'
    return answer


class _Line:
    """What csv writes to: it keeps nothing."""

    def write(self, line: str) -> str:
        return line


def _csv_lines(body: dict[str, Any]) -> Iterator[str]:
    writer = csv.writer(_Line())
    yield "\ufeff" + str(writer.writerow(CSV_COLUMNS))
    for kind in ("error", "warning"):
        for problem in body[f"{kind}s"]:
            cells = [kind, *(problem.get(name, "") for name in CSV_COLUMNS[1:])]
            yield str(writer.writerow([escaped(cell) for cell in cells]))


def escaped(cell: object) -> object:
    """A cell that a spreadsheet shows as it is, and never runs."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


@in_workspace("GET", "POST")
def dataset_reading(request: HttpRequest, by: Membership, id: str, number: int) -> HttpResponse:
    """GET: the first rows as the chosen columns would be read, a fragment. POST: read the file that way."""
    version = get_version(by, id, number)
    reading = _checked(version).body.get("reading") or {}
    chosen = request.POST if request.method == "POST" else request.GET
    mapping = _mapping({role: chosen.get(role, "") for role in ROLES}, reading.get("columns", []))
    if request.method == "GET":
        samples = [] if isinstance(mapping, str) else _samples(mapping, reading.get("preview", []))
        why = mapping if isinstance(mapping, str) else ""
        return render(request, "datasets/_preview.html", {"samples": samples, "why": why})
    if isinstance(mapping, str):
        raise UserError("incomplete_reading", mapping, "question", "Choose the columns and try again.")
    made = actions.read_differently(by=by, version=version, mapping=mapping, held_out=newest_held_out(by))
    messages.success(request, f"The file is being read your way: {made}.")
    return redirect("dataset_version", by.workspace.slug, made.dataset_id, made.number)


def _mapping(chosen: dict[str, str], columns: list[str]) -> Mapping | str:
    """The mapping that a form says, or a sentence about what is missing."""
    chosen = {role: column for role, column in chosen.items() if column in columns}
    if chosen.get("messages"):
        return Mapping(
            shape="chat",
            name="as you chose",
            messages=chosen["messages"],
            system=chosen.get("system", ""),
            role="from" if chosen["messages"] == "conversations" else "role",
            text="value" if chosen["messages"] == "conversations" else "content",
        )
    if not chosen.get("question") or not chosen.get("answer"):
        return "Choose at least the column with the question and the one with the answer."
    twice = [column for column in chosen.values() if list(chosen.values()).count(column) > 1]
    if twice:
        return f"The column {twice[0]!r} is chosen twice."
    return Mapping(shape="columns", name="as you chose", **chosen)


def _samples(mapping: Mapping, rows: list[dict[str, str]]) -> list[list[dict[str, Any]]]:
    """The first rows as messages, as far as the cut cells tell."""
    return [
        [message for _, message in items_of(_opened(row, mapping), mapping) if isinstance(message, dict)]
        for row in rows[:PREVIEW_ROWS]
    ]


def _opened(row: dict[str, str], mapping: Mapping) -> dict[str, object]:
    """A list of messages stands in the preview as JSON, whole when it is short."""
    opened: dict[str, object] = dict(row)
    if mapping.messages:
        try:
            opened[mapping.messages] = json.loads(row.get(mapping.messages, ""))
        except ValueError:
            text = row.get(mapping.messages, "")
            opened[mapping.messages] = [{mapping.role: "user", mapping.text: text}]
    return opened


def _checked(version: DatasetVersion) -> Checked:
    found = checked(version)
    if found is None:
        raise NotFound("report")
    return found
