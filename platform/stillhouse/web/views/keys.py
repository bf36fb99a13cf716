"""Keys of apps: made, shown once, limited, revoked."""

from collections.abc import Mapping
from datetime import UTC, datetime, time

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.dateparse import parse_date

from stillhouse.accounts.actions import change_key, create_key, revoke_key
from stillhouse.accounts.keys import APP_SCOPES, KeyTerms
from stillhouse.accounts.models import Membership
from stillhouse.accounts.queries import get_key
from stillhouse.accounts.queries import keys as keys_of
from stillhouse.core.errors import UserError
from stillhouse.publishing.queries import aliases
from stillhouse.usage.queries import tokens_this_month
from stillhouse.web.access import in_workspace, is_htmx, wants_json
from stillhouse.web.connect import python_snippet

USUAL_PURPOSE = "inference models"
PURPOSES = (
    (USUAL_PURPOSE, "Ask models and list them"),
    ("inference", "Ask models only"),
    ("models", "List models only"),
    ("training", "Upload data and start runs, in your name"),
    ("inference models training", "All of these"),
)


@in_workspace("GET", "POST")
def keys(request: HttpRequest, by: Membership) -> HttpResponse:
    """The list. A new key's secret is in the answer to the POST and nowhere else: no redirect then."""
    secret = ""
    if request.method == "POST":
        key, secret = create_key(by=by, name=request.POST.get("name", ""), terms=_terms(request.POST))
        if wants_json(request):
            return JsonResponse({"key": key.pk, "secret": secret}, status=201)
    alias = aliases(by).first()
    used = tokens_this_month(by)
    now = timezone.now()
    context = {
        "rows": [
            {
                "key": key,
                "used": used.get(key.pk, 0),
                "purpose": (purpose := " ".join(sorted(key.scopes))),
                "says": "" if purpose == USUAL_PURPOSE else dict(PURPOSES).get(purpose, purpose),
                "expired": key.expires_at is not None and key.expires_at <= now,
            }
            for key in keys_of(by)
        ],
        "purposes": PURPOSES,
        "secret": secret,
        "alias": alias,
        "python": python_snippet(alias.name if alias else "your-alias"),
    }
    return render(request, "keys/_list.html" if is_htmx(request) else "keys/page.html", context)


@in_workspace("POST")
def key_change(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    key = change_key(by=by, key=get_key(by, id), terms=_terms(request.POST))
    messages.success(request, f"The key {key.name} has its new terms, from its app's next request on.")
    return redirect("keys", by.workspace.slug)


@in_workspace("POST")
def key_revoke(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    key = get_key(by, id)
    revoke_key(by=by, key=key)
    messages.info(request, f"The key {key.name} is revoked. Apps that still use it are refused from now on.")
    return redirect("keys", by.workspace.slug)


def _terms(form: Mapping[str, str]) -> KeyTerms:
    return KeyTerms(
        scopes=frozenset(form.get("scopes", " ".join(APP_SCOPES)).split()),
        expires_at=_end_of(form.get("expires_on", "")),
        requests_per_minute=_whole(form, "requests_per_minute"),
        tokens_per_minute=_whole(form, "tokens_per_minute"),
        monthly_tokens=_whole(form, "monthly_tokens"),
        local_only=form.get("local_only") == "yes",
    )


def _end_of(day: str) -> datetime | None:
    """The last moment of a day in UTC, or None for an empty field."""
    if not day.strip():
        return None
    try:
        date = parse_date(day.strip())
    except ValueError:
        date = None
    if date is None:
        raise UserError("bad_expiry", f"{day[:20]!r} is no day.", "expires_on", "Write it as 2027-01-31.")
    return datetime.combine(date, time.max.replace(microsecond=0), UTC)


def _whole(form: Mapping[str, str], name: str) -> int | None:
    text = "".join(form.get(name, "").split()).replace(",", "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise UserError(
            "bad_limit", f"{text[:20]!r} is no whole number.", name, "Leave it empty for no limit."
        )
    return int(text)
