"""What goes around every page: the content security policy, and errors in words."""

import logging
from collections.abc import Callable
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from stillhouse.core.errors import PlatformError, UserError
from stillhouse.core.ids import new_id
from stillhouse.web.error_pages import render_error

logger = logging.getLogger(__name__)
GetResponse = Callable[[HttpRequest], HttpResponseBase]


def content_security_policy(store_origin: str) -> str:
    """Nothing inline, nothing from elsewhere; the browser sends files straight to the object store."""
    rules = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "font-src": "'self'",
        "connect-src": f"'self' {store_origin}",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


class ContentSecurityPolicyMiddleware:
    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        parts = urlsplit(settings.S3_PUBLIC_ENDPOINT)
        self.policy = content_security_policy(f"{parts.scheme}://{parts.netloc}")

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        response.setdefault("Content-Security-Policy", self.policy)
        response.setdefault("Permissions-Policy", "camera=(), microphone=(), geolocation=()")
        if request.user.is_authenticated:
            response.setdefault("Cache-Control", "private, no-store")
        return response


class UserErrorMiddleware:
    """Shows a UserError as it is, and everything else as ours, with an id to quote. Never a traceback."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        if isinstance(exception, UserError):
            return render_error(request, exception)
        if isinstance(exception, Http404 | PermissionDenied) or settings.DEBUG:
            return None
        incident = new_id("err")
        kind = "platform" if isinstance(exception, PlatformError) else "unexpected"
        logger.error("%s error %s at %s %s", kind, incident, request.method, request.path, exc_info=exception)
        return render_error(request, ours(incident))


def ours(incident: str) -> UserError:
    """The sentence people see when the fault is not theirs."""
    return UserError(
        "platform_error",
        "Something went wrong on our side. Nothing you entered is at fault, and nothing stored was changed.",
        place=incident,
        next_step="Try again in a minute. If it happens again, tell your administrator the id above.",
        status=500,
    )
