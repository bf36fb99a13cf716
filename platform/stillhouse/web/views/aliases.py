"""Aliases: the stable names that apps send, what each answers with, and the way back."""

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render

from stillhouse.accounts.models import Membership
from stillhouse.adapters.queries import get_version
from stillhouse.publishing import actions
from stillhouse.publishing.queries import aliases as aliases_of
from stillhouse.publishing.queries import current_publication, get_alias, history, rollback_target
from stillhouse.serving.queries import is_ready
from stillhouse.web.access import in_workspace
from stillhouse.web.connect import curl_snippet, python_snippet


@in_workspace("GET")
def aliases(request: HttpRequest, by: Membership) -> HttpResponse:
    rows = []
    for alias in aliases_of(by):
        current = current_publication(alias)
        rows.append(
            {
                "alias": alias,
                "current": current,
                "ready": bool(current and is_ready(current.version)),
                "target": rollback_target(alias),
                "history": history(alias)[:20],
                "python": python_snippet(alias.name),
                "curl": curl_snippet(alias.name),
            }
        )
    return render(request, "aliases/page.html", {"rows": rows})


@in_workspace("POST")
def publish(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    version = get_version(by, id)
    name = request.POST.get("alias", "").strip()
    publication = actions.publish(by=by, alias_name=name, version=version)
    messages.success(request, f"{publication.alias} answers with {version} from the next request on.")
    return redirect("version", by.workspace.slug, version.pk)


@in_workspace("POST")
def rollback(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    publication = actions.rollback(by=by, alias=get_alias(by, id))
    messages.success(request, f"{publication.alias} answers with {publication.version} again.")
    return redirect("aliases", by.workspace.slug)
