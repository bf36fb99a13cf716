"""The playground: a conversation in the browser with what apps would reach, by a short-lived grant."""

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

from stillhouse.accounts.grants import make_grant
from stillhouse.accounts.models import Membership
from stillhouse.evaluations.queries import instructions_of
from stillhouse.publishing.queries import aliases, current_publication
from stillhouse.serving.queries import pools
from stillhouse.web.access import in_workspace

GRANT_SECONDS = 15 * 60


@in_workspace("GET")
def playground(request: HttpRequest, by: Membership) -> HttpResponse:
    bases = {pool.base_id: pool.base for pool in pools()}
    published = [(alias, publication) for alias in aliases(by) if (publication := current_publication(alias))]
    instructions = instructions_of([publication.version for _, publication in published])
    known = {alias.name for alias, _ in published} | set(bases)
    asked = request.GET.get("model", "")
    return render(
        request,
        "playground/page.html",
        {
            "published": [
                (alias, publication, instructions[publication.version_id]) for alias, publication in published
            ],
            "bases": list(bases.values()),
            "chosen": asked if asked in known else "",
            "compare": request.GET.get("compare") == "1",
            "api_url": f"{settings.STILLHOUSE_URL}/v1",
        },
    )


@in_workspace("POST", answers_json=True)
def playground_grant(request: HttpRequest, by: Membership) -> HttpResponse:
    """A fresh grant for this person's page: it may call whatever an app key of the workspace may."""
    token = make_grant(workspace_id=by.workspace_id, caller=by.user_id, models=None, seconds=GRANT_SECONDS)
    return JsonResponse({"grant": token, "seconds": GRANT_SECONDS})
