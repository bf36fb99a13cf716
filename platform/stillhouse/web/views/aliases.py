"""Aliases: the stable names that apps send, what each answers with, and the way back."""

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render

from stillhouse.accounts.models import Membership
from stillhouse.adapters.models import APPROVED, AdapterVersion
from stillhouse.adapters.queries import get_version, versions
from stillhouse.core.errors import UserError
from stillhouse.publishing import actions
from stillhouse.publishing.models import Alias, Publication
from stillhouse.publishing.queries import aliases as aliases_of
from stillhouse.publishing.queries import (
    canary_of,
    current_publication,
    get_alias,
    history,
    rollback_target,
    shadow_of,
)
from stillhouse.publishing.retirement import retire_version
from stillhouse.serving.queries import is_ready
from stillhouse.web.access import in_workspace
from stillhouse.web.connect import curl_snippet, python_snippet
from stillhouse.web.views.escalation import escalation_row
from stillhouse.web.views.keeping import keeping_row

STEPS = (10, 25, 50, 100)
CHOICES = 50
"""Versions offered for a canary: the newest ready ones."""


@in_workspace("GET")
def aliases(request: HttpRequest, by: Membership) -> HttpResponse:
    approved = versions(by).filter(state=APPROVED)[:CHOICES]
    ready = [version for version in approved if is_ready(version)]
    rows = [_row(by, alias, ready) for alias in aliases_of(by)]
    return render(request, "aliases/page.html", {"rows": rows, "steps": STEPS})


def _row(by: Membership, alias: Alias, ready: list[AdapterVersion]) -> dict[str, Any]:
    current = current_publication(alias)
    canary = canary_of(current) if current else None
    return {
        "alias": alias,
        "current": current,
        "canary": canary,
        "shadow": shadow_of(current) if current else None,
        "own_percent": 100 - (canary.percent if canary else 0),
        "others": [one for one in ready if current and one.pk != current.version_id],
        "ready": bool(current and is_ready(current.version)),
        "target": rollback_target(alias),
        "history": [
            {"row": row, "canary": canary_of(row), "shadow": shadow_of(row)} for row in history(alias)[:20]
        ],
        "elsewhere": escalation_row(by, alias),
        "kept": keeping_row(by, alias),
        "python": python_snippet(alias.name),
        "curl": curl_snippet(alias.name),
    }


@in_workspace("POST")
def publish(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    version = get_version(by, id)
    name = request.POST.get("alias", "").strip()
    publication = actions.publish_once_loaded(by=by, alias_name=name, version=version)
    messages.success(request, f"{publication.alias} answers with {version} from the next request on.")
    return redirect("version", by.workspace.slug, version.pk)


@in_workspace("POST")
def retire(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    version = retire_version(by=by, version=get_version(by, id), reason=request.POST.get("reason", ""))
    messages.success(request, f"{version} is retired: nothing answers with it any more.")
    return redirect("version", by.workspace.slug, version.pk)


@in_workspace("POST")
def alias_shares(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    """Start, change or end a canary or a shadow; a share of 0 per cent ends it."""
    alias, form = get_alias(by, id), request.POST
    shadow, percent = form.get("kind") == "shadow", _percent(form.get("percent", ""))
    if percent == 0:
        publication = (actions.end_shadow if shadow else actions.end_canary)(by=by, alias=alias)
    elif shadow:
        version = get_version(by, form.get("version", ""))
        publication = actions.start_shadow(by=by, alias=alias, version=version, percent=percent)
    else:
        version = get_version(by, form.get("version", ""))
        spread = form.get("spread") or Publication.BY_USER
        publication = actions.start_canary(
            by=by, alias=alias, version=version, percent=percent, spread=spread
        )
    messages.success(request, _in_words(publication))
    return redirect("aliases", by.workspace.slug)


def _percent(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 3:
        raise UserError(
            "bad_share", f"{text[:20]!r} is no share.", "percent", "Choose a number from 0 to 100."
        )
    return int(text)


def _in_words(publication: Publication) -> str:
    canary, shadow = canary_of(publication), shadow_of(publication)
    answer = f"{publication.alias} answers with {publication.version}"
    if canary:
        answer = f"{answer} and, {canary.percent} % of the time, with {canary.version}"
    return f"{answer}; {shadow.version} sees copies." if shadow else f"{answer} from the next request on."


@in_workspace("POST")
def rollback(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    publication = actions.rollback(by=by, alias=get_alias(by, id))
    messages.success(request, f"{publication.alias} answers with {publication.version} again.")
    return redirect("aliases", by.workspace.slug)
