"""Datasets: names, versions, reports, and the calls by which the browser brings a file."""

import json
import re
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import Count
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse

from stillhouse.accounts.models import Membership
from stillhouse.core.errors import UserError
from stillhouse.datasets import actions, uploading
from stillhouse.datasets.models import DatasetReport, DatasetVersion, TrafficSource
from stillhouse.datasets.queries import datasets as datasets_of
from stillhouse.datasets.queries import get_dataset, get_upload, get_version, trainable
from stillhouse.datasets.queries import versions as versions_of
from stillhouse.datasets.quota import room_of
from stillhouse.datasets.reports import checked
from stillhouse.jobs.models import SUCCEEDED
from stillhouse.training.queries import newest_held_out, runs
from stillhouse.web.access import in_workspace, is_htmx, wants_json
from stillhouse.web.views.dataset_changes import KIND_WORDS, fixes, steps_in_words
from stillhouse.web.views.dataset_notes import tagged
from stillhouse.web.views.dataset_reports import problems_context
from stillhouse.web.views.traffic import append_targets
from workers.contract import MAX_ROWS


@in_workspace("GET")
def datasets(request: HttpRequest, by: Membership) -> HttpResponse:
    page = Paginator(datasets_of(by), 50).get_page(request.GET.get("page"))
    latest = {
        version.dataset_id: version
        for version in versions_of(by)
        .filter(dataset__in=[item.pk for item in page])
        .order_by("dataset", "-number")
        .distinct("dataset")
    }
    rows = [(item, latest.get(item.pk)) for item in page]
    context = {"rows": rows, "page": page, **tagged(by, request.GET.get("tag", ""))}
    return render(request, "datasets/page.html", context)


@in_workspace("GET", "POST")
def dataset_new(request: HttpRequest, by: Membership) -> HttpResponse:
    if request.method == "GET":
        return render(request, "datasets/new.html", uploader_context(by))
    made = actions.create_dataset(by=by, name=request.POST.get("name", ""))
    url = reverse("dataset", args=[by.workspace.slug, made.pk])
    if not wants_json(request):
        return redirect(url)
    uploads_url = reverse("upload_start", args=[by.workspace.slug, made.pk])
    return JsonResponse({"dataset": made.pk, "url": url, "uploads_url": uploads_url}, status=201)


@in_workspace("GET")
def dataset(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    item = get_dataset(by, id)
    versions = versions_of(by).filter(dataset=item).order_by("-number").prefetch_related("tags")
    versions = versions.annotate(comment_count=Count("comments"))
    return render(
        request,
        "datasets/dataset.html",
        {"dataset": item, "versions": versions, **uploader_context(by)},
    )


def uploader_context(by: Membership) -> dict[str, Any]:
    """What is said before a file is chosen."""
    return {"max_upload": settings.MAX_UPLOAD_BYTES, "max_rows": MAX_ROWS, "room": room_of(by.workspace)}


@in_workspace("GET")
def dataset_version(request: HttpRequest, by: Membership, id: str, number: int) -> HttpResponse:
    version = get_version(by, id, number)
    found = checked(version)
    report = found.report if found else None
    if wants_json(request):
        return JsonResponse(_version_json(version, report))
    context: dict[str, Any] = {
        "version": version,
        "report": report,
        "body": found.body if found else None,
        "job": version.job,
    }
    if found is not None:
        context["errors"] = problems_context(version, found.body, "errors")
        context["warnings"] = problems_context(version, found.body, "warnings")
        context["reading_fields"] = reading_fields(found.body.get("reading") or {})
        context["charts"] = charts(found.body.get("doctor") or {})
        context["personal"] = personal(found.body.get("doctor") or {})
        context["fixes"] = fixes(by, found.body)
        context["others"] = trainable(by).exclude(pk=version.pk)[:50]
    context["traffic"] = TrafficSource.objects.filter(upload=version.upload_id).first()
    if context["traffic"] and report is not None and report.valid:
        context["targets"] = append_targets(by, version.pk, version.dataset_id)
    context["parents"] = [source.parent for source in version.sources.select_related("parent__dataset")]
    context["steps"] = steps_in_words(version, found.body if found else None)
    if is_htmx(request):
        return render(request, "datasets/_report.html", context)
    context["runs"] = runs(by).filter(data=version)[:5]
    return render(request, "datasets/version.html", context)


FIELD_WORDS = {
    "question": "Question",
    "answer": "Answer",
    "context": "Added to the question",
    "reasoning": "Reasoning",
    "system": "Instruction (system)",
    "messages": "Or: the whole conversation",
}
CHART_WORDS = {
    "question_lengths": "Questions",
    "reasoning_lengths": "Reasoning",
    "answer_lengths": "Answers",
}


def reading_fields(reading: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What each column is read as: name of the form field, words for it, the column."""
    mapping = reading.get("mapping") or {}
    return [(name, words, mapping.get(name, "")) for name, words in FIELD_WORDS.items()]


def charts(doctor: dict[str, Any]) -> list[tuple[str, str, list[list[int]]]]:
    """The histograms that have any rows: name, words, [upper end in characters, rows]."""
    return [(name, words, doctor[name]) for name, words in CHART_WORDS.items() if doctor.get(name)]


def personal(doctor: dict[str, Any]) -> list[tuple[str, int, list[str]]]:
    """Kinds of personal data in words, the rows of each, and the first places."""
    return [
        (KIND_WORDS.get(kind, kind), found["rows"], [spoken_place(place) for place in found["places"][:3]])
        for kind, found in (doctor.get("personal") or {}).items()
    ]


def spoken_place(place: str) -> str:
    """`row 3, messages[1]` as a person counts."""
    return re.sub(r"messages\[(\d+)\]", lambda found: f"message {int(found[1]) + 1}", place)


def _version_json(version: DatasetVersion, report: DatasetReport | None) -> dict[str, Any]:
    job = version.job
    return {
        "id": version.pk,
        "number": version.number,
        "sha256": version.sha256,
        "size": version.size,
        "state": job.state,
        "ready": job.state == SUCCEEDED and report is not None and report.valid > 0,
        "failure": job.failure,
        "report": report
        and {
            "rows": report.rows,
            "valid": report.valid,
            "error_count": report.error_count,
            "warning_count": report.warning_count,
        },
    }


@in_workspace("POST", answers_json=True)
def upload_start(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    """JSON {"filename", "size"} -> where to put the parts."""
    item = get_dataset(by, id)
    asked = _json_body(request)
    size = asked.get("size")
    if not isinstance(size, int) or isinstance(size, bool):
        raise UserError("bad_size", "The size of the file is missing.", "size", "Send the number of bytes.")
    upload = uploading.start_upload(by=by, dataset=item, filename=str(asked.get("filename", "")), size=size)
    ws = by.workspace.slug
    return JsonResponse(
        {
            "upload": upload.pk,
            "part_size": upload.part_size,
            "parts": upload.part_count,
            "part_url": reverse("upload_part", args=[ws, upload.pk, 0]).replace("/0/", "/{number}/"),
            "finish_url": reverse("upload_finish", args=[ws, upload.pk]),
            "url": reverse("upload_abandon", args=[ws, upload.pk]),
        },
        status=201,
    )


@in_workspace("POST", answers_json=True)
def upload_part(request: HttpRequest, by: Membership, id: str, number: int) -> HttpResponse:
    upload = get_upload(by, id)
    return JsonResponse({"url": uploading.part_url(by=by, upload=upload, number=number)})


@in_workspace("POST", answers_json=True)
def upload_finish(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    version = uploading.finish_upload(by=by, upload=get_upload(by, id), held_out=newest_held_out(by))
    url = reverse("dataset_version", args=[by.workspace.slug, version.dataset_id, version.number])
    messages.success(request, f"The file has arrived: {version}. It is being checked now.")
    return JsonResponse({"version": version.pk, "number": version.number, "url": url})


@in_workspace("GET", "DELETE", answers_json=True)
def upload_abandon(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    """DELETE throws the upload away; GET tells which parts have arrived, for one that goes on."""
    upload = get_upload(by, id)
    if request.method == "GET":
        return JsonResponse({"arrived": uploading.arrived_parts(by=by, upload=upload)})
    uploading.abandon_upload(by=by, upload=upload)
    return HttpResponse(status=204)


def _json_body(request: HttpRequest) -> dict[str, Any]:
    try:
        body = json.loads(request.body)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise UserError(
            "bad_json", "The request is not a JSON object.", next_step="Send Content-Type: application/json."
        )
    return body
