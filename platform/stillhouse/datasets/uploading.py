"""The way of a file: its upload in parts, from the browser or from this process, until it is a version."""

from collections.abc import Sequence

from django.conf import settings
from django.db import transaction
from django.utils import timezone
from minio.datatypes import Part

from stillhouse.accounts.access import require
from stillhouse.accounts.models import Membership
from stillhouse.core import blobs
from stillhouse.core.blobs import Blob, Readable
from stillhouse.core.errors import Conflict, NotFound, UserError
from stillhouse.core.locks import held
from stillhouse.core.pending import Holder
from stillhouse.core.text import clean_name
from stillhouse.datasets.actions import check_workspace, write_version
from stillhouse.datasets.models import Dataset, DatasetVersion, Upload
from stillhouse.datasets.purging import remove_files
from stillhouse.datasets.quota import check_room

MIN_PART_BYTES = 8 * 1024**2
MAX_PARTS = 10_000  # S3's limit
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".xlsx", ".parquet", ".zip", ".gz", ".zst")
HASHED_AT_ONCE = 64 * 1024**2
"""A larger file is hashed by its check, on a worker: a person does not wait for it."""


def start_upload(*, by: Membership, dataset: Dataset, filename: str, size: int) -> Upload:
    """Begin an upload of `size` bytes; the browser then sends its parts to `part_url` addresses.

    Raises UserError `bad_name`, `unknown_format`, `empty_file`, `file_too_large` or `quota_reached`.
    """
    check_workspace(by, dataset)
    require(by, "dataset.upload")
    filename = check_file(filename, size)
    upload = Upload(
        dataset=dataset, filename=filename, size=size, part_size=_part_size(size), created_by=by.user
    )
    with held(f"quota:{by.workspace_id}"):
        check_room(by.workspace, size)
        upload.storage_upload_id = blobs.start_multipart(upload.staging_key)
        upload.save(force_insert=True)
    return upload


def check_file(filename: str, size: int) -> str:
    """The name as it is kept.

    Raises UserError `bad_name`, `unknown_format`, `empty_file` or `file_too_large`.
    """
    filename = clean_name(filename, what="file name", limit=200)
    if not filename.lower().endswith(SUFFIXES):
        raise UserError(
            "unknown_format",
            f"{filename} is not a kind of file that is read here.",
            place="file",
            next_step=f"Choose a file that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}.",
        )
    _check_size(size)
    return filename


def part_url(*, by: Membership, upload: Upload, number: int) -> str:
    """A short-lived address to PUT part `number` to, from 1 to `upload.part_count`."""
    check_workspace(by, upload.dataset)
    if upload.finished_at is not None:
        raise Conflict("upload_finished", "This upload is finished already.")
    if not 1 <= number <= upload.part_count:
        raise UserError(
            "no_such_part",
            f"Part {number} does not exist: the file has {upload.part_count} parts.",
            place="part",
            next_step="Reload the page and start the upload again.",
        )
    return blobs.part_url(upload.staging_key, upload.storage_upload_id, number)


def arrived_parts(*, by: Membership, upload: Upload) -> list[int]:
    """Numbers of the parts that the store holds whole: what a resumed upload need not send again.

    Raises UserError `upload_gone` when the store does not know the upload any more.
    """
    check_workspace(by, upload.dataset)
    if upload.finished_at is not None:
        raise Conflict("upload_finished", "This upload is finished already.")
    arrived = blobs.arrived_parts(upload.staging_key, upload.storage_upload_id)
    return sorted(
        {part.part_number for part in arrived if part.size == upload.bytes_of_part(part.part_number)}
    )


def send_file(*, by: Membership, dataset: Dataset, filename: str, size: int, content: Readable) -> Upload:
    """An upload of what this process itself holds, all of it in the store. Raises as `start_upload`."""
    upload = start_upload(by=by, dataset=dataset, filename=filename, size=size)
    try:
        blobs.send_parts(upload.staging_key, upload.storage_upload_id, upload.part_size, content)
    except BaseException:
        abandon_upload(by=by, upload=upload)  # it would count against the quota
        raise
    return upload


def finish_upload(
    *, by: Membership, upload: Upload, held_out: Sequence[DatasetVersion] = ()
) -> DatasetVersion:
    """Put what arrived together and make it the dataset's next version, with its check queued.

    The check also looks for rows that stand in one of `held_out`, versions that runs are evaluated on.

    The same call again, from another tab say, waits for the first and returns the same version. A large file
    gets its digest from the check. Raises UserError `upload_incomplete`, `empty_file`, `file_too_large`, or
    `same_content` when the dataset has these bytes already (a small file's are known here).
    """
    check_workspace(by, upload.dataset)
    require(by, "dataset.upload")
    with held(f"upload:{upload.pk}"):
        version = DatasetVersion.objects.filter(upload=upload).select_related("dataset").first()
        if version:
            return version
        if not Upload.objects.filter(pk=upload.pk).exists():
            raise NotFound("upload")
        _collect(upload)
        if upload.size > HASHED_AT_ONCE:
            return _make_version(by, upload, Blob("", upload.size), held_out)
        try:
            # The staging object goes when the version is written: until then, a finish may be tried again.
            return _make_version(
                by, upload, blobs.adopt(upload.staging_key, holder=_holder(upload)), held_out
            )
        finally:
            _tidy(upload)


def abandon_upload(*, by: Membership, upload: Upload) -> None:
    """Throw an unfinished upload away; Conflict for one that has become a version."""
    check_workspace(by, upload.dataset)
    with held(f"upload:{upload.pk}"):
        if DatasetVersion.objects.filter(upload=upload).exists():
            raise Conflict("upload_finished", "This upload has become a dataset version already.")
        _drop(upload)


def place_original(version: DatasetVersion, sha256: str, holder: Holder) -> None:
    """Copy a large file to its content address, under the digest that the worker took while reading it.

    Workers are trusted with every workspace's data, and so with its digest. Safe to call again.
    """
    if version.sha256 or version.upload is None:
        return
    blobs.place(version.upload.staging_key, Blob(sha256, version.size), holder=holder)


def _collect(upload: Upload) -> None:
    """Put the parts together. A call that died may have done any of the steps."""
    key = upload.staging_key
    if blobs.staged_size(key) is None:
        parts = _whole_parts(upload, blobs.arrived_parts(key, upload.storage_upload_id))
        blobs.finish_multipart(key, upload.storage_upload_id, parts)
    size = blobs.staged_size(key)
    if size != upload.size:
        raise _incomplete(upload, f"{size or 0:,} of its {upload.size:,} bytes arrived.")


def _whole_parts(upload: Upload, arrived: list[Part]) -> list[Part]:
    """The parts of the right size, every number of them; raises UserError before anything is put together.

    A part sent twice may be listed twice (SeaweedFS does so, and takes the newest of those it is given).
    """
    largest: dict[int, int] = {}
    for part in arrived:
        largest[part.part_number] = max(largest.get(part.part_number, 0), part.size or 0)
    if sum(largest.values()) > settings.MAX_UPLOAD_BYTES:
        _drop(upload)
        _check_size(sum(largest.values()))
    whole = [part for part in arrived if part.size == upload.bytes_of_part(part.part_number)]
    numbers = {part.part_number for part in whole}
    if len(numbers) < upload.part_count:
        raise _incomplete(upload, f"{len(numbers)} of its {upload.part_count} parts arrived whole.")
    return whole


def _incomplete(upload: Upload, found: str) -> UserError:
    return UserError(
        "upload_incomplete",
        f"{upload.filename} is not complete: {found}",
        place="file",
        next_step="Send the missing parts, or upload the file again without changing it meanwhile.",
    )


def _make_version(
    by: Membership, upload: Upload, blob: Blob, held_out: Sequence[DatasetVersion]
) -> DatasetVersion:
    with transaction.atomic():
        dataset = Dataset.objects.select_for_update().get(pk=upload.dataset_id)
        same = dataset.versions.filter(sha256=blob.sha256).first() if blob.sha256 else None
        if same is None:
            version = write_version(
                by, dataset, upload=upload, filename=upload.filename, blob=blob, held_out=held_out
            )
            Upload.objects.filter(pk=upload.pk).update(finished_at=timezone.now())
            _holder(upload).brought()
            return version
        Upload.objects.filter(pk=upload.pk).delete()
    if same.erased_at:
        remove_files(same, came_back=_holder(upload))
    _holder(upload).brought()
    raise _same_bytes(upload, same)


def _same_bytes(upload: Upload, same: DatasetVersion) -> UserError:
    said = f"{upload.filename} holds the same bytes as {same}"
    code, message, next_step = (
        ("erased_content", f"{said}, whose rows were erased.", "Take those rows out of the file first.")
        if same.erased_at
        else (
            "same_content",
            f"{said}: no version was made.",
            f"Use v{same.number}, or choose another file.",
        )
    )
    return UserError(code, message, place="file", next_step=next_step, status=409)


def _holder(upload: Upload) -> Holder:
    return Holder(upload.pk, upload.dataset.workspace_id)


def _tidy(upload: Upload) -> None:
    """Remove the staging object of an upload that became a version, or that held nothing new."""
    if not Upload.objects.filter(pk=upload.pk, finished_at=None).exists():
        blobs.discard(upload.staging_key)


def _drop(upload: Upload) -> None:
    blobs.abort_multipart(upload.staging_key, upload.storage_upload_id)
    blobs.discard(upload.staging_key)
    Upload.objects.filter(pk=upload.pk).delete()


def _part_size(size: int) -> int:
    """At least 8 MiB, whole MiB, and large enough for S3's limit on parts."""
    mib = 1024**2
    return max(MIN_PART_BYTES, -(-size // MAX_PARTS // mib) * mib)


def _check_size(size: int) -> None:
    if size <= 0:
        raise UserError(
            "empty_file", "The file is empty.", place="file", next_step="Choose a file with data in it."
        )
    if size > settings.MAX_UPLOAD_BYTES:
        raise UserError(
            "file_too_large",
            f"The file has {size:,} bytes; {settings.MAX_UPLOAD_BYTES:,} is the most.",
            place="file",
            next_step="Split the file, or ask the operator to raise MAX_UPLOAD_BYTES.",
            status=413,
        )
