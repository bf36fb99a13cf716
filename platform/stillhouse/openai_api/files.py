"""/v1/files: a file is a dataset version. The same bytes under the same name are the same file."""

import hashlib

from django.core.files.uploadedfile import UploadedFile
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse

from stillhouse.accounts.models import Membership
from stillhouse.core import blobs
from stillhouse.core.errors import Conflict, UserError
from stillhouse.datasets.actions import create_dataset
from stillhouse.datasets.models import Dataset, DatasetVersion
from stillhouse.datasets.queries import check_not_erased, datasets, version_by_id, versions
from stillhouse.datasets.uploading import check_file, finish_upload, send_file
from stillhouse.openai_api.access import by_method
from stillhouse.openai_api.pages import page_of
from stillhouse.openai_api.shapes import file_object
from stillhouse.training.queries import newest_held_out

PURPOSE = "fine-tune"
MOST_BYTES = 512 * 1024**2
"""As OpenAI has it; more goes from the browser straight to the store."""


def files(request: HttpRequest, by: Membership) -> HttpResponse:
    found = versions(by)
    if request.GET.get("purpose", PURPOSE) != PURPOSE:
        found = found.none()
    return page_of(request, found, file_object, "file")


def file_create(request: HttpRequest, by: Membership) -> HttpResponse:
    """The dataset is called after the file, without its endings; other bytes become its next version."""
    sent = request.FILES.get("file")
    if sent is None or not sent.name:
        raise UserError(
            "missing_required_parameter", "No file was sent.", "file", "Send it as the form's field `file`."
        )
    if (purpose := request.POST.get("purpose", "")) != PURPOSE:
        raise UserError(
            "invalid_value", f"purpose is {purpose[:40]!r}.", "purpose", f"Only {PURPOSE!r} is known here."
        )
    if (sent.size or 0) > MOST_BYTES:
        raise UserError(
            "file_too_large",
            f"The file has {sent.size:,} bytes; {MOST_BYTES:,} is the most by this way.",
            "file",
            "Upload it on the datasets page: it goes straight to the store there.",
            status=413,
        )
    check_file(sent.name, sent.size or 0)
    version = _version_of(by, _dataset_called(by, sent.name.partition(".")[0]), sent)
    return JsonResponse(file_object(version))


def file(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    return JsonResponse(file_object(version_by_id(by, id)))


def file_delete(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    version = version_by_id(by, id)
    raise UserError(
        "file_kept",
        f"{version} is kept: runs and their adapters refer to it.",
        "id",
        "A lead can erase rows of it on the page Erasures.",
    )


def file_content(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    """The bytes as they were uploaded, from the store itself."""
    version = version_by_id(by, id)
    check_not_erased(version)
    if not version.sha256:
        raise Conflict("not_hashed_yet", f"{version} is still being checked.", "Try again when it is done.")
    return HttpResponseRedirect(blobs.get_url(version.sha256))


def _dataset_called(by: Membership, name: str) -> Dataset:
    return datasets(by).filter(name=name).first() or create_dataset(by=by, name=name)


def _version_of(by: Membership, dataset: Dataset, sent: "UploadedFile[bytes]") -> DatasetVersion:
    """The version that holds these bytes; made now unless it is there already."""
    digest = hashlib.sha256()
    for chunk in sent.chunks():
        digest.update(chunk)
    same = versions(by).filter(dataset=dataset, sha256=digest.hexdigest(), erased_at=None).first()
    if same is not None:
        return same
    sent.seek(0)
    upload = send_file(by=by, dataset=dataset, filename=sent.name or "", size=sent.size or 0, content=sent)
    return finish_upload(by=by, upload=upload, held_out=newest_held_out(by))


files_view = by_method(GET=files, POST=file_create)
file_view = by_method(GET=file, DELETE=file_delete)
content_view = by_method(GET=file_content)
