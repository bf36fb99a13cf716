"""What Django itself refuses: no such address, no permission, a stale form, a crash."""

from django.http import HttpRequest, HttpResponse

from stillhouse.core.errors import UserError
from stillhouse.core.ids import new_id
from stillhouse.web.error_pages import render_error
from stillhouse.web.middleware import ours


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return render_error(
        request,
        UserError(
            "not_found",
            "There is nothing at this address.",
            next_step="Go back, or start at the home page.",
            status=404,
        ),
    )


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    return render_error(
        request,
        UserError(
            "not_allowed",
            "You may not do this.",
            next_step="Ask an administrator of the workspace.",
            status=403,
        ),
    )


def csrf_failed(request: HttpRequest, reason: str = "") -> HttpResponse:
    return render_error(
        request,
        UserError(
            "stale_form",
            "This form is older than your sign-in, so it was not accepted.",
            next_step="Go back, reload the page and send it again.",
            status=403,
        ),
    )


def server_error(request: HttpRequest) -> HttpResponse:
    return render_error(request, ours(new_id("err")))
