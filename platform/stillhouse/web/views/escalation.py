"""An alias's escalation on the page of the aliases: the terms a lead agrees to, and what came of them."""

from decimal import Decimal, InvalidOperation
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect

from stillhouse.accounts.models import Membership
from stillhouse.core.errors import UserError
from stillhouse.evaluations.confidence import table_of
from stillhouse.evaluations.isotonic import FEWEST
from stillhouse.evaluations.queries import latest_result
from stillhouse.publishing.escalation import (
    NANO,
    EscalationTerms,
    escalation_of,
    start_escalation,
    stop_escalation,
)
from stillhouse.publishing.models import Alias, Escalation
from stillhouse.publishing.queries import current_publication, get_alias
from stillhouse.usage.queries import alias_month
from stillhouse.web.access import in_workspace

REASONS = (
    (Escalation.CONTEXT, "The prompt is longer than the version here can take"),
    (Escalation.TOOLS, "The request has tools and the engine here takes none"),
    (Escalation.FORMAT, "The answer here misses the response_format that was asked for"),
    (Escalation.CONFIDENCE, "The answer here is less likely right than"),
)


USUAL_THRESHOLD = 0.8


@in_workspace("POST")
def alias_escalation(request: HttpRequest, by: Membership, id: str) -> HttpResponse:
    """Turn it on, change its terms, or turn it off."""
    alias, form = get_alias(by, id), request.POST
    if form.get("stop"):
        stop_escalation(by=by, alias=alias)
        messages.info(request, f"Requests for {alias.name} stay on this site from the next one on.")
        return redirect("aliases", by.workspace.slug)
    agreed = form.get("agreed") == "yes"
    terms = EscalationTerms(
        url=form.get("url", ""),
        model=form.get("model", ""),
        credential=form.get("credential", ""),
        prompt_price=_money(form.get("prompt_price", ""), "prompt_price"),
        completion_price=_money(form.get("completion_price", ""), "completion_price"),
        monthly_budget=_money(form.get("monthly_budget", ""), "monthly_budget"),
        reasons=tuple(form.getlist("reasons")),
        consent=form.get("consent", "") if agreed else "",
        threshold=_share(form.get("threshold", "")),
    )
    escalation = start_escalation(by=by, alias=alias, terms=terms)
    messages.success(request, f"{alias.name} may ask {escalation.model} from the next request on.")
    return redirect("aliases", by.workspace.slug)


def escalation_row(by: Membership, alias: Alias) -> dict[str, Any]:
    """For the alias's part of the page."""
    escalation = escalation_of(alias)
    on = escalation is not None and escalation.enabled
    row: dict[str, Any] = {
        "on": on,
        "terms": escalation,
        "reasons": [
            (name, label, on and name in (escalation.reasons if escalation else ()))
            for name, label in REASONS
        ],
        "destinations": settings.ESCALATION_DESTINATIONS,
        "threshold": escalation.threshold if on and escalation and escalation.threshold else USUAL_THRESHOLD,
    }
    if settings.ESCALATION_DESTINATIONS:
        row |= _calibrated(alias)
    if escalation is not None:
        month = alias_month(by, alias.name)
        everything = (
            month.prompt_tokens * escalation.prompt_price
            + month.completion_tokens * escalation.completion_price
        )
        row |= {
            "month": month,
            "local": month.requests - month.escalated,
            "prompt_price": _million(escalation.prompt_price),
            "completion_price": _million(escalation.completion_price),
            "budget": Decimal(escalation.monthly_budget) / NANO,
            "spent": Decimal(month.cost) / NANO,
            "everything_remote": Decimal(everything) / NANO,
        }
    return row


def _calibrated(alias: Alias) -> dict[str, Any]:
    """What each threshold would have done on the evaluation of the version that answers now."""
    publication = current_publication(alias)
    result = latest_result(publication.version) if publication else None
    rows = result.summary.rows if result else 0
    return {"thresholds": table_of(result), "judged": rows, "fewest": FEWEST}


def _share(text: str) -> float:
    """A probability; 0 for what is none, which is refused where one is needed."""
    try:
        number = float(text.strip().replace(",", "."))
    except ValueError:
        return 0.0
    return number if 0 < number < 1 else 0.0


def _million(nanos: int) -> Decimal:
    """The price of a million tokens."""
    return Decimal(nanos) / 1000


def _money(text: str, place: str) -> Decimal:
    try:
        amount = Decimal(text.strip().replace(",", ".") or "x")
    except InvalidOperation:
        amount = Decimal("nan")
    if not amount.is_finite() or len(text) > 20:
        raise UserError("bad_amount", f"{text[:20]!r} is no amount.", place, "Write it as 2.50.")
    return amount
