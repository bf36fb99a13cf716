"""Writes of escalation: whether an alias may ask a larger model elsewhere, which one, and for how much."""

from dataclasses import dataclass
from decimal import Decimal

from django.conf import settings
from django.db import transaction

from stillhouse.accounts.access import require
from stillhouse.accounts.models import Membership
from stillhouse.audit.actions import record
from stillhouse.core.errors import NotFound, UserError
from stillhouse.core.notify import GATEWAY, notify
from stillhouse.core.sealing import seal
from stillhouse.publishing.destinations import is_allowed
from stillhouse.publishing.models import Alias, Escalation

CREDENTIAL = "escalation"
"""What the credential is sealed for."""
NANO = 10**9
"""Money is kept in billionths of the currency's unit. A price per million tokens with three decimals is a
whole number of them per token, so costs add up exactly."""
MOST_MONEY = Decimal(1_000_000)
_MOST_CONSENT = 2000


@dataclass(frozen=True)
class EscalationTerms:
    """What a lead agrees to. Money is in the unit that the remote service bills in."""

    url: str
    model: str
    credential: str
    """Empty: the one that is there stays, as long as the destination is the same."""
    prompt_price: Decimal
    completion_price: Decimal
    """Per million tokens, at most three decimals."""
    monthly_budget: Decimal
    reasons: tuple[str, ...]
    consent: str
    threshold: float = 0.0
    """For the reason `confidence`: above 0, below 1."""


def is_available() -> bool:
    """Whether the operator has named any destination."""
    return bool(settings.ESCALATION_DESTINATIONS)


@transaction.atomic
def start_escalation(*, by: Membership, alias: Alias, terms: EscalationTerms) -> Escalation:
    """Let requests of the alias leave the site on these terms, from the next one on; or change the terms.

    Raises NotFound, UserError `not_allowed`, `escalation_unavailable`,
    `destination_not_allowed`, `bad_model`, `bad_price`, `bad_budget`, `bad_reason`, `bad_threshold`,
    `consent_missing` or `credential_missing`.
    """
    _of_workspace(by, alias)
    url = terms.url.strip().rstrip("/")
    _check(terms, url)
    Alias.objects.select_for_update().get(pk=alias.pk)
    before = escalation_of(alias)
    changed = {
        "enabled": True,
        "url": url,
        "model": terms.model.strip(),
        "credential": _credential(before, terms, url),
        "prompt_price": _per_token(terms.prompt_price, "prompt_price"),
        "completion_price": _per_token(terms.completion_price, "completion_price"),
        "monthly_budget": int(terms.monthly_budget * NANO),
        "reasons": [reason for reason in Escalation.REASONS if reason in terms.reasons],
        "threshold": terms.threshold if Escalation.CONFIDENCE in terms.reasons else 0.0,
        "consent": terms.consent.strip(),
        "changed_by": by.user,
    }
    escalation, _ = Escalation.objects.update_or_create(alias=alias, defaults=changed)
    unsaid = ("credential", "changed_by", "enabled")
    details = {name: value for name, value in changed.items() if name not in unsaid}
    _record(by, alias, "alias.escalation_on", details)
    return escalation


@transaction.atomic
def stop_escalation(*, by: Membership, alias: Alias) -> None:
    """Let nothing leave any more, and forget the credential. Nothing happens where it is off already."""
    _of_workspace(by, alias)
    if Escalation.objects.filter(alias=alias, enabled=True).update(
        enabled=False, credential="", changed_by=by.user
    ):
        _record(by, alias, "alias.escalation_off", {})


def escalation_of(alias: Alias) -> Escalation | None:
    """The alias's terms, be they in force or not; None where there never were any."""
    return Escalation.objects.filter(alias=alias).select_related("changed_by").first()


def _of_workspace(by: Membership, alias: Alias) -> None:
    if alias.workspace_id != by.workspace_id:
        raise NotFound("alias")
    require(by, "alias.escalate")


def _record(by: Membership, alias: Alias, action: str, details: dict[str, object]) -> None:
    record(
        workspace=by.workspace,
        by=by.user,
        action=action,
        object_id=alias.id,
        object_name=alias.name,
        details=details,
    )
    notify(GATEWAY)


def _check(terms: EscalationTerms, url: str) -> None:
    if not is_available():
        raise UserError(
            "escalation_unavailable",
            "Nothing may leave this site: the operator has named no destination.",
            "url",
            "Ask your operator to set ESCALATION_DESTINATIONS, if prompts may go anywhere at all.",
            status=403,
        )
    if not is_allowed(url, settings.ESCALATION_DESTINATIONS):
        raise UserError(
            "destination_not_allowed",
            f"Prompts may not go to {url[:100]!r}.",
            "url",
            f"The operator allows {', '.join(settings.ESCALATION_DESTINATIONS)}.",
            status=403,
        )
    model = terms.model.strip()
    if not model or len(model) > 120 or not model.isprintable():
        raise UserError("bad_model", "Name the remote model.", "model", "As its service lists it.")
    if not 0 < terms.monthly_budget <= MOST_MONEY:
        raise UserError(
            "bad_budget",
            f"{terms.monthly_budget} is no monthly budget.",
            "monthly_budget",
            "State what may be spent in a calendar month; nothing is asked for beyond it.",
        )
    _check_reasons(terms)
    if not terms.consent.strip() or len(terms.consent) > _MOST_CONSENT:
        raise UserError(
            "consent_missing",
            "Prompts would leave the site, and nobody has agreed to that.",
            "consent",
            "Tick that you agree, and say in a sentence why it is allowed. It is kept in the audit trail.",
        )


def _check_reasons(terms: EscalationTerms) -> None:
    if not terms.reasons or not set(terms.reasons) <= set(Escalation.REASONS):
        raise UserError(
            "bad_reason",
            "Say when the remote model is asked.",
            "reasons",
            f"Choose from: {', '.join(Escalation.REASONS)}.",
        )
    if Escalation.CONFIDENCE in terms.reasons and not 0 < terms.threshold < 1:
        raise UserError(
            "bad_threshold",
            f"{terms.threshold} is no threshold.",
            "threshold",
            "Give a probability between 0 and 1, such as 0.8.",
        )


def _per_token(price: Decimal, place: str) -> int:
    """Billionths for one token, of a price per million."""
    nanos = price * 1000
    if not 0 <= price <= MOST_MONEY or nanos != int(nanos):
        raise UserError(
            "bad_price",
            f"{price} is no price per million tokens.",
            place,
            "Write it with at most three decimals, such as 2.50; 0 for a model of your own.",
        )
    return int(nanos)


def _credential(before: Escalation | None, terms: EscalationTerms, url: str) -> str:
    """Sealed. One that was entered for one destination is never sent to another."""
    if terms.credential.strip():
        return seal(CREDENTIAL, terms.credential.strip())
    if before is not None and before.enabled and before.url == url:
        return before.credential
    raise UserError(
        "credential_missing",
        "The key for the remote service is missing.",
        "credential",
        "Enter it; it is kept sealed and not shown again. Where none is needed, enter a dash.",
    )
