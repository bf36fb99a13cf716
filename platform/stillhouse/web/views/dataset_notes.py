"""Tags of a dataset version, and the comments pinned to its rows."""

from collections.abc import Iterable
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme

from stillhouse.accounts.models import Membership
from stillhouse.core.errors import UserError
from stillhouse.datasets import notes
from stillhouse.datasets.models import DatasetVersion
from stillhouse.datasets.queries import get_version, versions
from stillhouse.web.access import in_workspace

PAGE = 50


@in_workspace("POST")
def dataset_tag(request: HttpRequest, by: Membership, id: str, number: int) -> HttpResponse:
    """Hang a tag on the version (`tag`), or take one off (`remove`)."""
    version = get_version(by, id, number)
    if gone := request.POST.get("remove"):
        notes.remove_tag(by=by, version=version, name=gone)
    else:
        notes.add_tag(by=by, version=version, name=request.POST.get("tag", ""))
    return redirect("dataset_version", by.workspace.slug, id, number)


@in_workspace("GET", "POST")
def dataset_comments(request: HttpRequest, by: Membership, id: str, number: int) -> HttpResponse:
    """GET: every comment on the version's rows. POST: one more, then back to where it was written."""
    version = get_version(by, id, number)
    if request.method == "GET":
        page = Paginator(notes.comments_of(version), PAGE).get_page(request.GET.get("page"))
        place = {"row": request.GET.get("row", "")[:16], "source": request.GET.get("source", "")[:400]}
        return render(request, "datasets/comments.html", {"version": version, "page": page, **place})
    comment = notes.add_comment(
        by=by,
        version=version,
        row=_row(request.POST),
        source=request.POST.get("source", ""),
        text=request.POST.get("text", ""),
    )
    messages.success(request, f"Your comment hangs on row {comment.row}.")
    return redirect(_back(request, by, version))


@in_workspace("POST")
def comment_delete(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    comment = notes.get_comment(by, id)
    notes.delete_comment(by=by, comment=comment)
    messages.info(request, "Your comment is deleted.")
    return redirect(_back(request, by, comment.version))


def with_comments(version: DatasetVersion, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a preview or problems of a report, each with `comments`: those pinned to its row."""
    listed = list(rows)
    found = notes.comments_at(version, [row["row"] for row in listed if row["row"]])
    return [{**row, "comments": found.get((row["row"], row.get("source") or ""), [])} for row in listed]


def tagged(by: Membership, tag: str) -> dict[str, Any]:
    """For the list of datasets: every tag of the workspace, and the versions that have the chosen one."""
    found = []
    if tag:
        found = list(versions(by).filter(tags__name=tag)[:200])
    return {"tags": notes.tags_in_use(by), "tag": tag, "tagged": found}


def _row(form: QueryDict) -> int:
    text = form.get("row", "").strip()
    if not text.isascii() or not text.isdigit() or len(text) > 16:
        raise UserError("bad_row", f"{text[:20]!r} is no row number.", "row", "Give a number from 1 on.")
    return int(text)


def _back(request: HttpRequest, by: Membership, version: DatasetVersion) -> str:
    """The page of ours that the form was on, at its row; else the version's comments."""
    back = request.POST.get("back", "")
    if url_has_allowed_host_and_scheme(back, None) and back.startswith(f"/w/{by.workspace.slug}/datasets/"):
        return back
    return reverse("dataset_comments", args=[by.workspace.slug, version.dataset_id, version.number])
