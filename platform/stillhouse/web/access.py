"""Who is asking: every page of a workspace begins here."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, cast

from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.views.decorators.http import require_http_methods

from stillhouse.accounts.access import membership_for
from stillhouse.accounts.models import Membership

P = ParamSpec("P")
View = Callable[..., HttpResponseBase]


def in_workspace(
    *methods: str, answers_json: bool = False
) -> Callable[[Callable[Concatenate[HttpRequest, Membership, P], HttpResponseBase]], View]:
    """Hand the view the caller's membership in the workspace of the address; 404 for anybody else.

    The membership is also put on the request for the frame around the page. Only `methods` are answered. With
    `answers_json` errors are JSON whatever the caller says it reads: only programs call such a view.
    """

    def decorate(view: Callable[Concatenate[HttpRequest, Membership, P], HttpResponseBase]) -> View:
        @require_http_methods(list(methods or ("GET",)))
        @wraps(view)
        def guarded(request: HttpRequest, ws: str, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
            request.answers_json = answers_json  # type: ignore[attr-defined]
            if not request.user.is_authenticated:
                return _sign_in_first(request)
            membership = membership_for(request.user, ws)
            request.membership = membership  # type: ignore[attr-defined]
            return view(request, membership, *args, **kwargs)

        return cast(View, guarded)

    return decorate


def _sign_in_first(request: HttpRequest) -> HttpResponse:
    if wants_json(request):
        error = {
            "code": "not_signed_in",
            "message": "Sign in first.",
            "place": "",
            "next_step": "Reload the page.",
        }
        return JsonResponse({"error": error}, status=401)
    if is_htmx(request):  # a fragment is not what to come back to: the page around it asks for itself
        return HttpResponse(status=401, headers={"HX-Refresh": "true"})
    target = request.get_full_path() if request.method == "GET" else "/"
    return redirect_to_login(target)


def wants_json(request: HttpRequest) -> bool:
    """The caller is a program: it says so, it sends JSON, or the view is for programs only."""
    if getattr(request, "answers_json", False):
        return True
    preferred = request.headers.get("Accept", "").partition(",")[0].strip()
    return preferred == "application/json" or request.content_type == "application/json"


def is_htmx(request: HttpRequest) -> bool:
    """htmx asks for a fragment. A boosted form or link asks for a page."""
    htmx = cast(Any, request).htmx
    return bool(htmx) and not htmx.boosted
