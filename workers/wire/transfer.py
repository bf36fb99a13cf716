"""Files by presigned URL: download while hashing, resumed when the line breaks; upload straight from disk."""

import contextlib
import functools
import hashlib
import logging
import os
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx

from workers.contract import Sha256
from workers.wire.api import growing_pauses

log = logging.getLogger(__name__)

TIMEOUT = httpx.Timeout(60.0, connect=10.0)
UPLOAD_PIECE = 1024 * 1024
GONE_STATUS = {404, 410}
"""The object is not there."""
GIVE_UP_STATUS = {400, 401, 403}
"""Answers that the same URL will give again: an expired signature, say."""
ERROR_BYTES = 4096
"""A store says within these what is wrong."""


class TransferError(Exception):
    """A file could not be moved.

    `code` is stable; the text is a sentence without the URL (it holds a signature).
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def never() -> None:
    """The default of what is called meanwhile: go on."""


@dataclass(frozen=True)
class Patience:
    """How long a download waits for an absent store, and who is asked and told meanwhile."""

    seconds: float = 30.0
    """Without a single new byte."""
    check: Callable[[], None] = never
    """Called between pieces and in pauses; may raise to stop."""
    waiting: Callable[[], None] = never
    """Called before every pause."""


def make_client() -> httpx.Client:
    """A client for presigned URLs. No credentials and no redirects: the signature is for one address."""
    return httpx.Client(timeout=TIMEOUT, follow_redirects=False, verify=_authorities())


@functools.cache
def _authorities() -> ssl.SSLContext:
    """Read once: that takes longer than fetching a small adapter."""
    return httpx.create_ssl_context()


def sha256_of(path: Path) -> Sha256:
    """sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(
    client: httpx.Client,
    url: str,
    target: Path,
    *,
    size: int,
    sha256: Sha256 | None,
    patience: Patience = Patience(),
) -> Sha256:
    """Fetch `url` to `target`, which appears only when its size and sha256 are right; returns its sha256.

    Without an expected `sha256` the digest is only taken.

    A file already there and right is kept. Raises TransferError, for an absent store when the patience is
    over.
    """
    if sha256 and target.is_file() and target.stat().st_size == size and sha256_of(target) == sha256:
        return sha256
    partial = target.with_name(target.name + ".partial")
    try:
        digest = _fetch(client, url, partial, size, patience)
        if sha256 is not None and digest != sha256:
            raise TransferError(
                "checksum_mismatch",
                f"{target.name} arrived with sha256 {digest[:12]}…, expected {sha256[:12]}…: "
                "the stored object was changed or damaged.",
            )
        os.replace(partial, target)
        return digest
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def _fetch(client: httpx.Client, url: str, partial: Path, size: int, patience: Patience) -> str:
    """Write exactly `size` bytes to `partial` over as many connections as it takes; return their sha256."""
    hasher, done, progress = hashlib.sha256(), 0, time.monotonic()
    pauses = growing_pauses()
    with partial.open("wb") as file:
        while True:
            before = done
            try:
                for piece in _pieces(client, url, done):
                    done += len(piece)
                    if done > size:
                        raise TransferError(
                            "size_mismatch", f"{partial.stem} is longer than the {size} bytes expected."
                        )
                    hasher.update(piece)
                    file.write(piece)
                    patience.check()
                if done == size:
                    return hasher.hexdigest()
                reason = f"the line ended after {done} of {size} bytes"
            except httpx.HTTPStatusError as error:
                reason = f"the object store's address answered {error.response.status_code}"
            except httpx.HTTPError as error:
                reason = type(error).__name__
            if done > before:
                progress, pauses = time.monotonic(), growing_pauses()
            if time.monotonic() - progress > patience.seconds:
                raise TransferError("download_failed", f"{partial.stem} could not be downloaded: {reason}.")
            log.warning("download of %s: %s; trying again", partial.stem, reason)
            patience.waiting()
            pause(next(pauses), patience.check)


def _pieces(client: httpx.Client, url: str, start: int) -> Iterator[bytes]:
    """The bytes of `url` from `start` on."""
    headers = {"accept-encoding": "identity"}
    if start:
        headers["range"] = f"bytes={start}-"
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code in GONE_STATUS and _is_refusal(response):
            raise TransferError("object_missing", "The object store does not have the object to download.")
        if response.status_code in GIVE_UP_STATUS and _is_refusal(response):
            raise TransferError(
                "download_refused", f"The object store answered {response.status_code} to a download."
            )
        response.raise_for_status()
        if not _is_of_store(response):
            raise httpx.RemoteProtocolError("something in front of the object store answered")
        if start and response.status_code != httpx.codes.PARTIAL_CONTENT:
            raise TransferError(
                "download_failed", "The object store cannot resume a download that broke off."
            )
        yield from response.iter_raw()  # as it arrives: a larger piece would be lost with the line


def upload(client: httpx.Client, url: str, source: Path, *, check: Callable[[], None] = never) -> None:
    """PUT one file to `url` from disk, once.

    Raises TransferError; the caller asks for a fresh URL and tries again.
    """
    try:
        with source.open("rb") as file:
            response = client.put(
                url, content=_read_pieces(file, check), headers={"content-length": str(source.stat().st_size)}
            )
    except httpx.HTTPError as error:
        raise TransferError(
            "upload_failed", f"{source.name} could not be uploaded: {type(error).__name__}."
        ) from error
    if not response.is_success or not _is_of_store(response):
        raise TransferError(
            "upload_failed",
            f"The object store answered {response.status_code} to the upload of {source.name}.",
        )


def _is_refusal(response: httpx.Response) -> bool:
    """Whether the store itself gave this error, in the form of S3. A proxy in front of it answers 404, too,
    while the store starts: that says nothing of the object."""
    return b"<Code>" in next(response.iter_bytes(ERROR_BYTES), b"")


def _is_of_store(response: httpx.Response) -> bool:
    """Whether the store gave this answer of 2xx, and not a proxy: S3 names the object's ETag."""
    return "etag" in response.headers


def _read_pieces(file: BinaryIO, check: Callable[[], None]) -> Iterator[bytes]:
    while piece := file.read(UPLOAD_PIECE):
        check()
        yield piece


def pause(seconds: float, check: Callable[[], None]) -> None:
    """Sleep, but notice within half a second that `check` wants to stop."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        check()
        time.sleep(min(left, 0.5))
