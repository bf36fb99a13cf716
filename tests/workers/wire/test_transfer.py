"""Files to and from an object store that is away, or that something else answers for."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.proxy import SORRY, STARTING, Proxy
from tests.workers.standin import PlatformStandIn
from workers.wire.transfer import Patience, TransferError, download, make_client, never, upload

CONTENT = b"weights"


def fetch(url: str, target: Path, seconds: float, waiting: Callable[[], None] = never) -> None:
    patience = Patience(seconds, waiting=waiting)
    with make_client() as client:
        download(client, url, target, size=len(CONTENT), sha256=None, patience=patience)


@pytest.mark.parametrize("page", [STARTING, SORRY])
def test_a_download_waits_until_the_store_itself_answers(
    platform: PlatformStandIn, front: Proxy, tmp_path: Path, page: bytes
) -> None:
    """A proxy's 404 says nothing of the object, and its page is none."""
    platform.objects["file"] = CONTENT
    target = tmp_path / "file"
    url = f"{front.url}/store/file"
    with front.answering(page):
        with pytest.raises(TransferError) as failed:
            fetch(url, target, 0)
        assert failed.value.code == "download_failed" and not target.exists()
        told = threading.Event()
        waiting = threading.Thread(target=fetch, args=(url, target, 60, told.set))
        waiting.start()
        assert told.wait(30)
    waiting.join(30)
    assert target.read_bytes() == CONTENT


def test_an_object_that_the_store_has_not_is_not_waited_for(
    platform: PlatformStandIn, tmp_path: Path
) -> None:
    with pytest.raises(TransferError) as failed:
        fetch(f"{platform.url}/store/nothing", tmp_path / "file", 600)
    assert failed.value.code == "object_missing"


@pytest.mark.parametrize("page", [STARTING, SORRY])
def test_a_page_is_no_receipt_of_an_upload(front: Proxy, tmp_path: Path, page: bytes) -> None:
    source = tmp_path / "file"
    source.write_bytes(CONTENT)
    with front.answering(page), make_client() as client, pytest.raises(TransferError) as failed:
        upload(client, f"{front.url}/store/file", source)
    assert failed.value.code == "upload_failed"
