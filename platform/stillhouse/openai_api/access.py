"""Who calls, and how errors are told."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, cast

from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from stillhouse.accounts.keys import TRAINING
from stillhouse.accounts.models import Membership
from stillhouse.accounts.queries import member_of_key
from stillhouse.core.errors import UserError
from stillhouse.core.secrets import bearer_token

P = ParamSpec("P")
View = Callable[..., HttpResponseBase]
Handler = Callable[Concatenate[HttpRequest, Membership, P], HttpResponseBase]
KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}


class NotYet(UserError):
    """It will work in a moment. OpenAI's clients ask again by themselves, after the seconds they are told."""

    def __init__(self, code: str, message: str, place: str, *, seconds: int) -> None:
        super().__init__(code, message, place, f"Try again in {seconds} seconds.", status=409)
        self.seconds = seconds


def by_method(**handlers: Handler[Any]) -> View:
    """A view of one address: a handler per method, given the membership that the caller's key stands for.

    The key must be good and for training. Errors are JSON in OpenAI's form.
    """

    @csrf_exempt
    def view(request: HttpRequest, **path: str) -> HttpResponseBase:
        request.answers_json = True  # type: ignore[attr-defined]  # for what goes wrong on our side
        handler = handlers.get(request.method or "")
        try:
            if handler is None:
                raise UserError(
                    "method_not_allowed", f"This address takes {' or '.join(handlers)} requests.", status=405
                )
            secret = bearer_token(request.headers.get("Authorization", ""))
            return handler(request, member_of_key(secret, TRAINING), **path)
        except UserError as error:
            return refusal(error)

    return cast(View, wraps(next(iter(handlers.values())))(view))


def refusal(error: UserError) -> HttpResponse:
    """The error as OpenAI's clients read it."""
    body = {
        "message": str(error),
        "type": KINDS.get(error.status, "invalid_request_error"),
        "param": error.place or None,
        "code": error.code,
    }
    response = JsonResponse({"error": body}, status=error.status)
    if isinstance(error, NotYet):
        response["Retry-After"] = str(error.seconds)
    else:
        response["x-should-retry"] = "false"
    return response
