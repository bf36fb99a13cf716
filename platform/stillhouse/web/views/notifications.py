"""What a member is told by mail, and where a workspace's notices are posted to."""

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render

from stillhouse.accounts.models import Membership
from stillhouse.core.errors import UserError
from stillhouse.notifications import actions
from stillhouse.notifications.models import Delivery, EmailChoice, Webhook
from stillhouse.web.access import in_workspace

SHOWN = 30
CHOICES = (
    (
        EmailChoice.MINE,
        "What concerns me",
        "My runs when they end; as a lead, versions that wait for a decision.",
    ),
    (
        EmailChoice.ALL,
        "Everything",
        "Every run that ends and every request for a decision in this workspace.",
    ),
    (EmailChoice.NONE, "Nothing", "The pages show it all the same."),
)


@in_workspace("GET", "POST")
def notifications(request: HttpRequest, by: Membership) -> HttpResponse:
    """The page; a POST changes one of its parts, named by the field `do`."""
    secret = ""
    error: UserError | None = None
    do = request.POST.get("do", "") if request.method == "POST" else ""
    if do == "webhook":
        try:
            secret = actions.set_webhook(by=by, url=request.POST.get("url", ""))
        except UserError as found:
            error = found
    elif do == "remove":
        actions.remove_webhook(by=by)
        messages.info(request, "Nothing is posted any more.")
    elif do == "test":
        actions.send_test(by=by)
        messages.success(request, "A message is on its way; the list below shows what became of it.")
    elif request.method == "POST":
        actions.choose_emails(by=by, choice=request.POST.get("choice", ""))
        messages.success(request, "Saved.")
    if request.method == "POST" and not (secret or error):
        return redirect("notifications", by.workspace.slug)
    context = {**_context(by, secret), "error": error, "given": request.POST.get("url", "") if error else ""}
    response = render(request, "notifications/page.html", context, status=error.status if error else 200)
    if secret:
        response["Cache-Control"] = "no-store"
    return response


def _context(by: Membership, secret: str) -> dict[str, Any]:
    chosen = EmailChoice.objects.filter(membership=by).first()
    deliveries = Delivery.objects.filter(notice__workspace=by.workspace).select_related("notice")
    return {
        "choices": CHOICES,
        "chosen": chosen.choice if chosen else EmailChoice.MINE,
        "webhook": Webhook.objects.filter(workspace=by.workspace).select_related("changed_by").first(),
        "secret": secret,
        "deliveries": deliveries.filter(channel=Delivery.WEBHOOK).order_by("-pk")[:SHOWN],
    }
