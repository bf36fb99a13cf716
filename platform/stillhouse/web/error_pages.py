"""One error, three shapes: a page, a fragment for htmx, or JSON for a program."""

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

from stillhouse.core.errors import UserError
from stillhouse.web.access import wants_json

TITLES = {
    400: "That did not work",
    401: "Please sign in",
    403: "That is not yours to do",
    404: "Not found",
    409: "Something changed meanwhile",
    413: "Too large",
    500: "Our fault",
}


def error_body(error: UserError) -> dict[str, dict[str, str]]:
    return {
        "error": {
            "code": error.code,
            "message": error.message,
            "place": error.place,
            "next_step": error.next_step,
        }
    }


def render_error(request: HttpRequest, error: UserError) -> HttpResponse:
    """The error in the shape the caller reads, with the error's status."""
    if wants_json(request):
        return JsonResponse(error_body(error), status=error.status)
    if request.headers.get("HX-Request"):
        response = render(request, "components/_error.html", {"error": error}, status=error.status)
        # A fragment with an error goes where messages go, not where the answer would have gone.
        response["HX-Retarget"], response["HX-Reswap"] = "#messages", "innerHTML show:top"
        return response
    layout = "base.html" if hasattr(request, "membership") else "base_plain.html"
    context = {"error": error, "title": TITLES.get(error.status, TITLES[400]), "layout": layout}
    return render(request, "errors/page.html", context, status=error.status)
