"""Prompts and answers that a workspace keeps for a while, what apps said about them, and the end of both."""

import json
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone

from stillhouse.accounts.models import Membership, Workspace
from stillhouse.usage.models import Feedback, KeptExchange, UsageRecord

_BATCH = 1000
UNMATCHED_FOR = timedelta(hours=1)
"""How long feedback may wait for its exchange, which another gateway has."""


def kept_of(by: Membership, alias: str) -> QuerySet[KeptExchange]:
    """The alias's exchanges that have not expired, the newest first. Of the member's workspace only."""
    now = timezone.now()
    return KeptExchange.objects.filter(workspace=by.workspace, alias=alias, expires_at__gt=now).order_by(
        "-at"
    )


def rated(by: Membership, alias: str, *, rating: str = "", corrected: bool = False) -> QuerySet[KeptExchange]:
    """Those of the alias's exchanges that their app rated, or rated so, or corrected."""
    said = _verified(by).filter(request=OuterRef("pk"))
    if rating:
        said = said.filter(rating=rating)
    if corrected:
        said = said.exclude(correction="")
    return kept_of(by, alias).filter(Exists(said))


def feedback_on(by: Membership, exchanges: Iterable[KeptExchange]) -> dict[str, Feedback]:
    """What apps said about these exchanges, by exchange: only what came from the app that got the answer."""
    said = _verified(by).filter(request__in=[each.pk for each in exchanges])
    return {each.request: each for each in said}


def _verified(by: Membership) -> QuerySet[Feedback]:
    record = UsageRecord.objects.filter(
        pk=OuterRef("request"), workspace=OuterRef("workspace"), caller=OuterRef("caller")
    )
    return Feedback.objects.filter(Exists(record), workspace=by.workspace)


def corrected_answer(feedback: Feedback | None) -> str | None:
    """The answer as the app would have had it; None where it did not say."""
    if feedback is None or not feedback.correction:
        return None
    text: Any = json.loads(feedback.correction)
    return str(text)


def forget_expired() -> int:
    """Remove what has expired, and feedback on what is not kept, a batch at a time; returns how many
    exchanges. The keeper does this."""
    removed = 0
    while True:
        expired = KeptExchange.objects.filter(expires_at__lte=timezone.now()).values_list("pk", flat=True)
        batch = list(expired[:_BATCH])
        Feedback.objects.filter(request__in=batch).delete()
        count, _ = KeptExchange.objects.filter(pk__in=batch).delete()
        removed += count
        if count < _BATCH:
            break
    _forget_unmatched()
    return removed


def _forget_unmatched() -> None:
    exchange = KeptExchange.objects.filter(pk=OuterRef("request"))
    old = Feedback.objects.filter(~Exists(exchange), at__lt=timezone.now() - UNMATCHED_FOR)
    while batch := list(old.values_list("pk", flat=True)[:_BATCH]):
        Feedback.objects.filter(pk__in=batch).delete()


def forget_kept(workspace: Workspace, text: str) -> int:
    """Remove every kept exchange of the workspace, and the feedback on it, that holds a text.

    Case does not matter; beyond ASCII it is small, capital, or capital where a word begins. Returns how many
    exchanges.
    """
    forms = _written(text)
    exchanges = KeptExchange.objects.filter(
        _holding("prompt", forms) | _holding("answers", forms), workspace=workspace
    )
    found = list(exchanges.values_list("pk", flat=True))
    Feedback.objects.filter(request__in=found).delete()
    Feedback.objects.filter(_holding("correction", forms), workspace=workspace).delete()
    KeptExchange.objects.filter(pk__in=found).delete()
    return len(found)


def _written(text: str) -> set[str]:
    """How a text may stand in JSON: letters beyond ASCII are numbers there, without a case for Postgres."""
    cases = {text, text.lower(), text.upper(), text.title(), text.capitalize()}
    return cases | {json.dumps(each, ensure_ascii=plain)[1:-1] for each in cases for plain in (True, False)}


def _holding(field: str, forms: set[str]) -> Q:
    held = Q()
    for form in forms:
        held |= Q(**{f"{field}__icontains": form})
    return held
