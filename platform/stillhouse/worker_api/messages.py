"""From an HTTP request to a contract message, and back: bearer token, JSON, contract version, refusals."""

import json
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, TypeVar

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST
from pydantic import ValidationError

from stillhouse.core.errors import UserError
from stillhouse.core.secrets import bearer_token, same
from stillhouse.core.text import storable, storable_json
from stillhouse.jobs.errors import NoRoom, Refused
from stillhouse.jobs.models import Worker
from stillhouse.jobs.workers import check_name, note_contract, worker_with
from workers.contract import CONTRACT_VERSION, Message, Refusal

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)
WORKER = "WORKER_TOKEN"
NO_ROOM = HTTPStatus.INSUFFICIENT_STORAGE
"""For workers one more 5xx that is tried again; a report that gets it has renewed the lease."""
View = Callable[..., HttpResponse]


def call(message_type: type[M], *, token: str) -> Callable[[Callable[..., Message | None]], View]:
    """Turn `handler(message, **path parts)` into a view. `token` names the setting that callers must present.

    Whatever a worker sends is parsed before anything else happens, and a Refused or UserError of the
    handler becomes a Refusal; everything else is ours, a 5xx, which the caller tries again.
    """

    def decorate(handler: Callable[..., Message | None]) -> View:
        @csrf_exempt
        @require_POST
        def view(request: HttpRequest, **path: str) -> HttpResponse:
            try:
                worker = _check_bearer(request, token)
                value = _read(_body(request))
                if isinstance(value, dict):
                    name = _name(worker, value) if token == WORKER else ""
                    _check_version(value, name)
                answer = handler(check(message_type, value), **path)
            except Refused as error:
                return as_json(error.refusal, error.status)
            except UserError as error:
                return as_json(Refusal(code="bad_request", message=str(error)), error.status)
            except NoRoom as error:
                log.error("%s: %s", request.path, error.__cause__)
                return HttpResponse(NoRoom.__doc__, status=NO_ROOM, content_type="text/plain")
            return as_json(answer, 200)

        return view

    return decorate


def parse(message_type: type[M], body: bytes | str) -> M:
    """A message from JSON, with what Postgres cannot store replaced; raises Refused `bad_request`."""
    return check(message_type, _read(body))


def check(message_type: type[M], value: object) -> M:
    """A message from a JSON value; raises Refused `bad_request` naming the first field that is wrong."""
    try:
        return message_type.model_validate(storable_json(value))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "body"
        raise Refused(
            "bad_request", f"{message_type.__name__}.{place[:200]}: {first['msg'][:300]}"
        ) from error


def bearer(request: HttpRequest) -> str:
    """The token of the Authorization header, or ""."""
    return bearer_token(request.headers.get("Authorization", ""))


def _check_bearer(request: HttpRequest, token: str) -> Worker | None:
    """The enrolled worker that calls, or None for the shared token; raises Refused for anybody else."""
    given = bearer(request)
    if same(given, getattr(settings, token)):
        return None
    worker = worker_with(given) if given and token == WORKER else None
    if worker is None:
        raise Refused(
            "bad_worker_token",
            "The bearer token is missing, wrong or revoked. Set the token this platform was set up with, or "
            "enrol this worker again.",
        )
    return worker


def _read(body: bytes | str) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused("bad_request", f"The body is not JSON: {type(error).__name__}.") from error


def _name(caller: Worker | None, value: dict[str, Any]) -> str:
    """The name that a worker gives itself, where the message has one; Refused for another's."""
    name = value.get("worker")
    if not isinstance(name, str) or not name:
        return ""
    check_name(caller, storable(name))
    return storable(name)


def _check_version(value: dict[str, Any], name: str) -> None:
    """Raises Refused `contract_too_old` (426) for another version of the contract; it is noted of `name`."""
    version = value.get("contract", CONTRACT_VERSION)
    if version == CONTRACT_VERSION:
        return
    if name and isinstance(version, int) and 0 <= version < 2**31:
        note_contract(name, version)
    spoken = str(version)[:20]
    older = "platform" if isinstance(version, int) and version > CONTRACT_VERSION else "worker"
    raise Refused(
        "contract_too_old",
        f"The worker speaks contract {spoken}, the platform {CONTRACT_VERSION}. Upgrade the {older}.",
    )


def _body(request: HttpRequest) -> bytes:
    try:
        return request.body
    except RequestDataTooBig as error:
        raise UserError(
            "body_too_large",
            f"The body is larger than {settings.DATA_UPLOAD_MAX_MEMORY_SIZE:,} bytes.",
            next_step="Send large things as files.",
            status=413,
        ) from error


def as_json(message: Message | None, status: int) -> HttpResponse:
    content = message.model_dump_json() if message is not None else "{}"
    response = HttpResponse(content, status=status, content_type="application/json")
    response["Cache-Control"] = "no-store"  # answers carry presigned addresses and tokens
    return response
