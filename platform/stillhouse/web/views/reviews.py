"""Reviews: asking for approval, the queue, and the decision."""

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render

from stillhouse.accounts.models import Membership
from stillhouse.adapters.queries import get_version
from stillhouse.approvals import actions
from stillhouse.approvals.models import Decision
from stillhouse.approvals.queries import own_work, review_queue
from stillhouse.web.access import in_workspace


@in_workspace("GET")
def reviews(request: HttpRequest, by: Membership) -> HttpResponse:
    waiting = [(item, own_work(by, item.version, item)) for item in review_queue(by)]
    decided = (
        Decision.objects.filter(version__adapter__workspace=by.workspace)
        .select_related("version__adapter", "decided_by")
        .order_by("-created_at")[:20]
    )
    return render(request, "reviews/page.html", {"waiting": waiting, "decided": decided})


@in_workspace("POST")
def approval_ask(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    version = get_version(by, id)
    actions.ask_approval(by=by, version=version, note=request.POST.get("note", ""))
    messages.success(request, "Asked. A lead who had no part in it decides.")
    return redirect("version", by.workspace.slug, version.pk)


@in_workspace("POST")
def decide(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    version = get_version(by, id)
    decision = actions.decide(
        by=by, version=version, verdict=request.POST.get("verdict", ""), reason=request.POST.get("reason", "")
    )
    if decision.verdict == Decision.APPROVED:
        messages.success(request, "Approved. It can be published under an alias now.")
    else:
        messages.info(request, "Rejected. No app will ever reach this version.")
    return redirect("version", by.workspace.slug, version.pk)
