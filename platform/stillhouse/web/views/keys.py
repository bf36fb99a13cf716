"""Keys of apps: made, shown once, revoked."""

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render

from stillhouse.accounts.actions import create_key, revoke_key
from stillhouse.accounts.models import Membership
from stillhouse.accounts.queries import get_key
from stillhouse.accounts.queries import keys as keys_of
from stillhouse.publishing.queries import aliases
from stillhouse.web.access import in_workspace, is_htmx, wants_json
from stillhouse.web.connect import python_snippet


@in_workspace("GET", "POST")
def keys(request: HttpRequest, by: Membership) -> HttpResponse:
    """The list. A new key's secret is in the answer to the POST and nowhere else: no redirect then."""
    secret = ""
    if request.method == "POST":
        key, secret = create_key(by=by, name=request.POST.get("name", ""))
        if wants_json(request):
            return JsonResponse({"key": key.pk, "secret": secret}, status=201)
    alias = aliases(by).first()
    context = {
        "keys": keys_of(by),
        "secret": secret,
        "alias": alias,
        "python": python_snippet(alias.name if alias else "your-alias"),
    }
    return render(request, "keys/_list.html" if is_htmx(request) else "keys/page.html", context)


@in_workspace("POST")
def key_revoke(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    key = get_key(by, id)
    revoke_key(by=by, key=key)
    messages.info(request, f"The key {key.name} is revoked. Apps that still use it are refused from now on.")
    return redirect("keys", by.workspace.slug)
