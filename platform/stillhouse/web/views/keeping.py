"""Keeping an alias's prompts and answers: on for some days, or off and removed."""

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect

from stillhouse.accounts.models import Membership
from stillhouse.publishing.keeping import MOST_DAYS, start_keeping, stop_keeping
from stillhouse.publishing.models import Alias, Keeping
from stillhouse.publishing.queries import get_alias
from stillhouse.usage.kept import kept_of
from stillhouse.web.access import in_workspace

DAYS = 30
"""Offered where nothing is kept yet."""


@in_workspace("POST")
def alias_keeping(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    alias = get_alias(by, id)
    if request.POST.get("stop"):
        stop_keeping(by=by, alias=alias)
        messages.info(request, f"Nothing sent to {alias.name} is kept, and what was kept is being removed.")
    else:
        text = request.POST.get("days", "")
        days = int(text) if text.isascii() and text.isdigit() and len(text) <= 4 else 0
        start_keeping(by=by, alias=alias, days=days)
        messages.success(
            request, f"Prompts and answers of {alias.name} are kept for {days} days from now on."
        )
    return redirect("aliases", by.workspace.slug)


def keeping_row(by: Membership, alias: Alias) -> dict[str, Any]:
    """For the alias's part of the page."""
    keeping = Keeping.objects.filter(alias=alias).select_related("changed_by").first()
    return {
        "keeping": keeping,
        "count": kept_of(by, alias.name).count() if keeping else 0,
        "days": keeping.days if keeping else DAYS,
        "most": MOST_DAYS,
    }
