"""JSON calls to the platform: bearer token, timeouts, bounded retries, refusals as exceptions."""

import logging
import random
import time
from collections.abc import Iterator
from typing import TypeVar

import httpx
from pydantic import ValidationError

from workers.contract import Message, Refusal

log = logging.getLogger(__name__)

Answer = TypeVar("Answer", bound=Message)

TIMEOUT_SECONDS = 15.0
CONNECT_SECONDS = 5.0
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 15.0


class Refused(Exception):
    """The platform itself answered 4xx: it understood, and said no. Not retried."""

    def __init__(self, refusal: Refusal, status: int) -> None:
        super().__init__(f"{refusal.code}: {refusal.message}")
        self.refusal = refusal
        self.status = status

    @property
    def code(self) -> str:
        return self.refusal.code


class Unreachable(Exception):
    """The platform did not answer, or answered 5xx, or something in front of it answered in its place, for as
    long as the caller had patience."""


class NoRoom(Unreachable):
    """The platform is there and cannot keep what was sent: 507. A report has renewed the job's lease."""


class PlatformAPI:
    """One caller's connection to the platform. Safe to use from several threads."""

    def __init__(self, url: str, token: str) -> None:
        self._client = httpx.Client(
            base_url=url,
            headers={"authorization": f"Bearer {token}", "accept": "application/json"},
            follow_redirects=False,
        )

    def close(self) -> None:
        """Calls that are still being tried end with Unreachable."""
        self._client.close()

    def post(self, path: str, message: Message, answer: type[Answer], *, patience: float = 0.0) -> Answer:
        """POST `message`; retry for up to `patience` seconds while the platform is away. 0 tries once.

        Raises Refused on the platform's 4xx and Unreachable on everything that another try may cure.
        """
        content = self._send(path, message, patience)
        try:
            return answer.model_validate_json(content)
        except ValidationError:
            raise Unreachable(f"POST {path}: the answer is not one this version can read") from None

    def post_for_nothing(
        self, path: str, message: Message, *, patience: float = 0.0, timeout: float = TIMEOUT_SECONDS
    ) -> None:
        """Like `post`, for a call whose answer says no more than that it was taken.

        `timeout` is how long one try may take, in seconds.
        """
        self._send(path, message, patience, timeout)

    def _send(self, path: str, message: Message, patience: float, timeout: float = TIMEOUT_SECONDS) -> bytes:
        deadline = time.monotonic() + patience
        for pause in growing_pauses():
            try:
                return self._send_once(path, message, timeout)
            except Unreachable as error:
                if self._client.is_closed or time.monotonic() + pause > deadline:
                    raise
                log.warning("%s; trying again in %.1f s", error, pause)
            time.sleep(pause)
        raise AssertionError("growing_pauses never ends")

    def _send_once(self, path: str, message: Message, timeout: float) -> bytes:
        if self._client.is_closed:  # while another thread paused between two tries
            raise Unreachable(f"POST {path}: not sent, the caller is done")
        try:
            response = self._client.post(
                path,
                content=message.model_dump_json(),
                headers={"content-type": "application/json"},
                timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS),
            )
        except httpx.HTTPError as error:
            raise Unreachable(f"POST {path}: no answer ({type(error).__name__})") from error
        if response.is_success and _is_ours(response):
            return response.content
        if response.is_client_error and (refusal := _read_refusal(response)) is not None:
            raise Refused(refusal, response.status_code)
        failure = NoRoom if response.status_code == httpx.codes.INSUFFICIENT_STORAGE else Unreachable
        who = "the platform" if response.is_server_error else "something in front of the platform"
        raise failure(f"POST {path}: {who} answered {response.status_code}")


def growing_pauses(first: float = FIRST_PAUSE, longest: float = LONGEST_PAUSE) -> Iterator[float]:
    """Seconds to wait before each next try: doubling up to `longest`, spread so that workers do not align."""
    pause = first
    while True:
        yield pause * random.uniform(0.75, 1.25)
        pause = min(pause * 2, longest)


def _is_ours(response: httpx.Response) -> bool:
    """Whether the platform gave this answer of 2xx, and not a proxy that shows a page of its own."""
    is_json = response.headers.get("content-type", "").startswith("application/json")
    return is_json or response.status_code == httpx.codes.NO_CONTENT


def _read_refusal(response: httpx.Response) -> Refusal | None:
    """The refusal in a 4xx answer; None where a proxy wrote it, as some do while the platform starts."""
    try:
        return Refusal.model_validate_json(response.content)
    except ValidationError:
        return None
