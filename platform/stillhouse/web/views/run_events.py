"""The live side of a run: server-sent events, from a database read once a second.

A viewer costs no thread: between reads there is only a coroutine, and the reads share the small pool of
threads that the event loop keeps. A reader who reconnects says how far it got (`Last-Event-ID`) and is given
the rest.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from asgiref.sync import SyncToAsync, sync_to_async
from django.db import close_old_connections, connections
from django.http import HttpRequest, HttpResponseBase, StreamingHttpResponse

from stillhouse.accounts.models import Membership
from stillhouse.jobs.models import Job
from stillhouse.jobs.queries import curve
from stillhouse.jobs.timeline import Waiting, waiting
from stillhouse.training.queries import get_run
from stillhouse.web.access import in_workspace

POLL_SECONDS = 1.0
SILENCE_SECONDS = 15.0
"""After this long without news a word is sent: proxies keep the line open, and the page knows it is whole."""
LIFE_SECONDS = 600.0
"""Then the stream ends and the browser reconnects: nothing is held for ever."""

_CURSOR = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})")


@dataclass(frozen=True)
class Cursor:
    """How far a reader got: the attempt, and the last step that this attempt told."""

    attempt: int = 0
    step: int = -1

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        found = _CURSOR.fullmatch(text)
        return cls(int(found[1]), int(found[2])) if found else cls()

    def __str__(self) -> str:
        return f"{self.attempt}.{max(0, self.step)}"


@dataclass(frozen=True)
class News:
    """One read of a job: its state for the page, and the points after the cursor."""

    job: dict[str, Any]
    points: list[dict[str, Any]]
    cursor: Cursor
    restarted: bool
    ended: bool


@in_workspace("GET")
def run_events(request: HttpRequest, by: Membership, id: str) -> HttpResponseBase:
    item = get_run(by, id)
    cursor = Cursor.parse(request.headers.get("Last-Event-ID", "") or request.GET.get("after", ""))
    response = StreamingHttpResponse(_events(item.job_id, cursor), content_type="text/event-stream")
    response["Cache-Control"] = "no-store"
    response["X-Accel-Buffering"] = "no"
    return response


async def _events(job_id: str, cursor: Cursor) -> AsyncIterator[bytes]:
    """`reset` (the work began anew: forget the curve), `points`, `job`, `alive` and, last, `end`."""
    await _release_request_thread()
    yield b"retry: 2000\n\n"
    shown: dict[str, Any] = {}
    began = spoke = time.monotonic()
    while time.monotonic() - began < LIFE_SECONDS:
        news = await sync_to_async(_read, thread_sensitive=False)(job_id, cursor)
        cursor = news.cursor
        if news.restarted:
            yield _event("reset", {"attempt": cursor.attempt}, cursor)
        if news.points:
            yield _event("points", news.points, cursor)
        if news.job != shown:
            shown = news.job
            yield _event("job", shown, cursor)
            spoke = time.monotonic()
        if news.ended:
            yield _event("end", {"state": shown["state"]}, cursor)
            return
        if time.monotonic() - spoke > SILENCE_SECONDS:
            spoke = time.monotonic()
            yield b"event: alive\ndata: {}\n\n"
        await asyncio.sleep(POLL_SECONDS)


def _event(name: str, data: object, cursor: Cursor) -> bytes:
    return f"id: {cursor}\nevent: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _read(job_id: str, cursor: Cursor) -> News:
    """Blocking; runs in a shared thread, and leaves no stale connection behind in it."""
    close_old_connections()
    try:
        job = Job.objects.select_related("workspace").get(pk=job_id)
        restarted = 0 < cursor.attempt < job.beginning
        # A later attempt goes over steps that were told already. So the whole curve is told once an attempt,
        # and from then on what this attempt adds or says anew: every page has the last word on every step.
        if cursor.attempt == job.attempt:
            points = curve(job, attempt=job.attempt, after=cursor.step)
        else:
            points, cursor = curve(job), Cursor(job.attempt)
        place = waiting(job)
    finally:
        close_old_connections()
    told = max((point["step"] for point in points if point["attempt"] == job.attempt), default=cursor.step)
    return News(job_view(job, place), points, Cursor(job.attempt, told), restarted, job.ended)


def job_view(job: Job, place: Waiting | None = None) -> dict[str, Any]:
    """What the page shows of a job while it goes on."""
    return {
        "state": job.state,
        "phase": "" if job.ended else job.phase,
        "message": "" if job.ended else job.message,
        "step": job.step,
        "total_steps": job.total_steps,
        "eta_seconds": job.eta_seconds,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "worker": job.worker,
        "cancelling": job.cancelling,
        "pausing": job.pausing,
        "waiting": place.text if place else "",
        "log_tail": job.log_tail,
    }


async def _release_request_thread() -> None:
    """Give back the thread and the database connection that Django's sync middleware used for this request.

    asgiref keeps both for as long as a response lasts, which here may be hours. Whatever needs a thread later
    (closing the response, say) gets a new one.
    """
    await sync_to_async(connections.close_all)()
    context = SyncToAsync.thread_sensitive_context.get(None)
    executor = SyncToAsync.context_to_thread_executor.pop(context, None) if context else None
    if executor is not None:
        executor.shutdown(wait=False)
