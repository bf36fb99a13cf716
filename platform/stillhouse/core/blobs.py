"""Bytes in object storage, addressed by their sha256 and never overwritten. Erasure alone removes them.

Everything that workers or browsers send lands under `staging/`; `keep` hashes it on this side, copies it to
its content address and removes the staging object. Only content addresses are ever recorded in the database,
and what is on its way there is a PendingObject of its holder.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from io import BytesIO
from itertools import count
from typing import Any, Protocol
from urllib.parse import urlsplit

import urllib3
from django.conf import settings
from minio import Minio
from minio.commonconfig import ComposeSource, CopySource
from minio.datatypes import Part
from minio.error import S3Error
from urllib3.exceptions import ProtocolError

from stillhouse.core.errors import UserError
from stillhouse.core.pending import Holder, undisturbed

STAGING = "staging/"
CHUNK = 1024 * 1024
URL_LIFE = timedelta(hours=6)
CONNECT_SECONDS, READ_SECONDS = 5, 60
_MISSING = ("NoSuchKey", "NoSuchObject", "NotFound")
COPY_PIECE = (
    512 * 1024**2
)  # one request copies this much at most (S3 allows 5 GiB): a piece must end within READ_SECONDS


class Readable(Protocol):
    """A file, as far as it is read here."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Blob:
    """Kept bytes: their digest and size in bytes."""

    sha256: str
    size: int

    @property
    def key(self) -> str:
        return blob_key(self.sha256)


def blob_key(sha256: str) -> str:
    return f"sha256/{sha256[:2]}/{sha256}"


class _Pool(urllib3.PoolManager):
    """Takes no proxy's page for an answer of the store: 200 would be a receipt, 404 a missing object."""

    def urlopen(  # type: ignore[override]  # as the one of urllib3 is
        self, method: str, url: str, redirect: bool = True, **more: Any
    ) -> urllib3.BaseHTTPResponse:
        response = super().urlopen(method, url, redirect, **more)
        # Errors of S3 are XML, and objects, whatever their type, have an ETag.
        is_text = response.headers.get("content-type", "").startswith(("text/html", "text/plain"))
        if is_text and "etag" not in response.headers:
            response.drain_conn()
            response.release_conn()
            raise ProtocolError(f"{response.status} with a page: something in front of the store answered")
        return response


def _client(endpoint: str) -> Minio:
    parts = urlsplit(endpoint)
    pool = _Pool(
        timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
        retries=urllib3.Retry(total=3, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]),
        maxsize=16,
    )
    return Minio(
        parts.netloc,
        access_key=settings.S3_ACCESS_KEY,
        secret_key=settings.S3_SECRET_KEY,
        secure=parts.scheme == "https",
        region=settings.S3_REGION,
        http_client=pool,
    )


@lru_cache(maxsize=1)
def store() -> Minio:
    """The client for our own calls."""
    return _client(settings.S3_ENDPOINT)


@lru_cache(maxsize=1)
def _signer() -> Minio:
    """Signs URLs for the host under which browsers and workers reach the store. It makes no calls."""
    return _client(settings.S3_PUBLIC_ENDPOINT)


def ensure_bucket() -> None:
    if not store().bucket_exists(settings.S3_BUCKET):
        store().make_bucket(settings.S3_BUCKET)


def get_url(sha256: str) -> str:
    """A short-lived URL that reads one blob."""
    return _signer().presigned_get_object(settings.S3_BUCKET, blob_key(sha256), expires=URL_LIFE)


def object_url(key: str) -> str:
    """A short-lived URL that reads one object by its key."""
    return _signer().presigned_get_object(settings.S3_BUCKET, key, expires=URL_LIFE)


def put_url(staging_key: str) -> str:
    """A short-lived URL that writes one staging object."""
    return _signer().presigned_put_object(settings.S3_BUCKET, staging_key, expires=URL_LIFE)


def read(sha256: str) -> Iterator[bytes]:
    """The bytes of a blob, in chunks."""
    yield from _stream(blob_key(sha256))


def _stream(key: str) -> Iterator[bytes]:
    response = store().get_object(settings.S3_BUCKET, key)
    try:
        yield from response.stream(CHUNK)
    finally:
        response.close()
        response.release_conn()


def exists(sha256: str) -> bool:
    try:
        store().stat_object(settings.S3_BUCKET, blob_key(sha256))
    except S3Error as error:
        if error.code in _MISSING:
            return False
        raise
    return True


def remove(sha256: str) -> None:
    """Remove a blob that nothing needs, for good; nothing happens when it is not there."""
    store().remove_object(settings.S3_BUCKET, blob_key(sha256))


def remove_unless(is_named: Callable[[str], bool], sha256: str, *, by: Holder | None = None) -> None:
    """`remove`, but nothing happens where a row names the blob, or where somebody else than `by` is just
    bringing it: the keeper sees to that one later. Safe to call again."""
    with undisturbed(sha256, by=by) as alone:
        if alone and not is_named(sha256):
            remove(sha256)


def put(data: bytes) -> Blob:
    """Keep bytes that this process already holds; for small things only."""
    blob = Blob(hashlib.sha256(data).hexdigest(), len(data))
    if not exists(blob.sha256):
        store().put_object(settings.S3_BUCKET, blob.key, BytesIO(data), len(data))
    return blob


def keep(staging_key: str, *, holder: Holder, expected_sha256: str) -> Blob:
    """`adopt` a staging object, then remove it: for uploads whose digest is known beforehand."""
    blob = adopt(staging_key, holder=holder, expected_sha256=expected_sha256)
    discard(staging_key)
    return blob


def adopt(staging_key: str, *, holder: Holder, expected_sha256: str | None = None) -> Blob:
    """Hash a staging object and copy it to its content address; UserError when the digest is not as expected.

    Safe to call again after a failure half-way: a second copy writes the same bytes, and when the staging
    object is gone but the expected blob is there, an earlier call finished the work.
    """
    try:
        blob = _digest(staging_key)
    except S3Error as error:
        if error.code not in _MISSING:
            raise
        if expected_sha256 and _is_there(expected_sha256, holder):
            stat = store().stat_object(settings.S3_BUCKET, blob_key(expected_sha256))
            return Blob(expected_sha256, stat.size or 0)
        raise UserError(
            "upload_missing", "The uploaded file is not in the store.", next_step="Upload it again."
        ) from error
    if expected_sha256 and blob.sha256 != expected_sha256:
        raise UserError(
            "digest_mismatch",
            f"The uploaded bytes have sha256 {blob.sha256[:12]}…, not {expected_sha256[:12]}… as announced.",
            place=staging_key.rsplit("/", 1)[-1],
            next_step="Upload the file again.",
        )
    place(staging_key, blob, holder=holder)
    return blob


def place(staging_key: str, blob: Blob, *, holder: Holder) -> None:
    """Copy a staging object of a known digest to its content address; it stays for the keeper to sweep."""
    if not _is_there(blob.sha256, holder):
        _copy(staging_key, blob)


def _is_there(sha256: str, holder: Holder) -> bool:
    """Whether the object is there; either way it now counts as brought by the holder as well."""
    holder.expects(sha256)
    return exists(sha256)


def _digest(key: str) -> Blob:
    digest, size = hashlib.sha256(), 0
    for chunk in _stream(key):
        digest.update(chunk)
        size += len(chunk)
    return Blob(digest.hexdigest(), size)


def _copy(staging_key: str, blob: Blob) -> None:
    """Copy inside the store; a large object goes piece by piece and appears when all are there."""
    bucket = settings.S3_BUCKET
    if blob.size <= COPY_PIECE:
        store().copy_object(bucket, blob.key, CopySource(bucket, staging_key))
        return
    pieces = [
        ComposeSource(bucket, staging_key, offset=start, length=min(COPY_PIECE, blob.size - start))
        for start in range(0, blob.size, COPY_PIECE)
    ]
    store().compose_object(bucket, blob.key, pieces)


def start_multipart(staging_key: str) -> str:
    """Begin a multipart upload; returns its upload id."""
    return store()._create_multipart_upload(
        settings.S3_BUCKET, staging_key, {"Content-Type": "application/octet-stream"}
    )


def part_url(staging_key: str, upload_id: str, part_number: int) -> str:
    """A short-lived URL that writes one part (from 1)."""
    return _signer().get_presigned_url(
        "PUT",
        settings.S3_BUCKET,
        staging_key,
        expires=URL_LIFE,
        extra_query_params={"uploadId": upload_id, "partNumber": str(part_number)},
    )


def send_parts(staging_key: str, upload_id: str, part_size: int, data: Readable) -> None:
    """Write the parts of what this process itself holds, one in memory at a time."""
    for number in count(1):
        piece = data.read(part_size)
        if not piece:
            return
        store()._upload_part(settings.S3_BUCKET, staging_key, piece, None, upload_id, number)


def arrived_parts(staging_key: str, upload_id: str) -> list[Part]:
    """The parts that the store holds, in order (a browser's word for them is not needed).

    Raises UserError `upload_gone` when the store no longer knows the upload: it was finished or abandoned.
    """
    parts: list[Part] = []
    marker: str | None = None
    while True:
        try:
            answer = store()._list_parts(
                settings.S3_BUCKET, staging_key, upload_id, part_number_marker=marker
            )
        except S3Error as error:
            if error.code == "NoSuchUpload":
                raise _upload_gone() from error
            raise
        parts += answer.parts
        if not answer.is_truncated:
            return parts
        marker = str(answer.next_part_number_marker)


def finish_multipart(staging_key: str, upload_id: str, parts: list[Part]) -> None:
    """Put the parts together into the staging object."""
    store()._complete_multipart_upload(settings.S3_BUCKET, staging_key, upload_id, parts)


def abort_multipart(staging_key: str, upload_id: str) -> None:
    """Throw the parts away; nothing happens when the store does not know the upload any more."""
    try:
        store()._abort_multipart_upload(settings.S3_BUCKET, staging_key, upload_id)
    except S3Error as error:
        if error.code != "NoSuchUpload":
            raise


def discard(staging_key: str) -> None:
    """Remove a staging object; nothing happens when it is not there."""
    store().remove_object(settings.S3_BUCKET, staging_key)


def staged_size(staging_key: str) -> int | None:
    """Bytes of a staging object, or None when there is none."""
    try:
        return store().stat_object(settings.S3_BUCKET, staging_key).size or 0
    except S3Error as error:
        if error.code in _MISSING:
            return None
        raise


def objects(prefix: str) -> Iterator[tuple[str, datetime]]:
    """Key and time of the last change of every object under a prefix."""
    for item in store().list_objects(settings.S3_BUCKET, prefix=prefix, recursive=True):
        if item.object_name and item.last_modified:
            yield item.object_name, item.last_modified


def sweep_staging(older_than: timedelta) -> int:
    """Remove what attempts and browsers left under `staging/`; returns how many objects and uploads."""
    limit = datetime.now(UTC) - older_than
    objects = store().list_objects(settings.S3_BUCKET, prefix=STAGING, recursive=True)
    keys = [item.object_name for item in objects if item.object_name and _before(item.last_modified, limit)]
    for key in keys:
        discard(key)
    uploads = store()._list_multipart_uploads(settings.S3_BUCKET, prefix=STAGING).uploads
    unfinished = [upload for upload in uploads if _before(upload.initiated_time, limit)]
    for upload in unfinished:
        abort_multipart(upload.object_name, upload.upload_id or "")
    return len(keys) + len(unfinished)


def _before(moment: datetime | None, limit: datetime) -> bool:
    return moment is not None and moment < limit


def _upload_gone() -> UserError:
    return UserError(
        "upload_gone",
        "The store does not know this upload any more.",
        next_step="Choose the file and upload it again.",
        status=409,
    )
