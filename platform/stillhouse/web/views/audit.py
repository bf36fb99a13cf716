"""The audit trail: who did what, and whether the chain is whole."""

from django.core.paginator import Paginator
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from stillhouse.accounts.models import Membership
from stillhouse.audit.queries import events, verify_chain
from stillhouse.web.access import in_workspace


@in_workspace("GET")
def audit(request: HttpRequest, by: Membership) -> HttpResponse:
    action, person, text = (request.GET.get(name, "").strip() for name in ("action", "person", "q"))
    every = events(by)
    shown = every
    if action:
        shown = shown.filter(action=action)
    if person:
        shown = shown.filter(actor_id=person)
    if text:
        shown = shown.filter(Q(object_name__icontains=text) | Q(object_id__icontains=text))
    checked = request.GET.get("verify") == "1"
    query = request.GET.copy()
    query.pop("page", None)
    query.pop("verify", None)
    context = {
        "page": Paginator(shown, 50).get_page(request.GET.get("page")),
        "actions": every.order_by("action").values_list("action", flat=True).distinct(),
        "people": by.workspace.memberships.select_related("user").order_by("user__name"),
        "action": action,
        "person": person,
        "q": text,
        "query": query.urlencode(),
        "total": every.count(),
        "checked": checked,
        "broken_at": verify_chain(by.workspace) if checked else None,
    }
    return render(request, "audit/page.html", context)
