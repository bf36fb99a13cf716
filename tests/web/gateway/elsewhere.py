"""A larger model elsewhere: what a lead agrees to, what an app asks, what is booked."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

import httpx

from stillhouse.publishing.escalation import EscalationTerms
from stillhouse.usage.models import UsageRecord
from tests.waiting import wait_for
from tests.web.gateway.engine import Engine
from tests.web.gateway.house import Serving

ASK: Any = [{"role": "user", "content": "Which clause is this?"}]
SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "clause",
        "schema": {"type": "object", "required": ["type"], "properties": {"type": {"enum": ["fee", "term"]}}},
    },
}
TOO_LONG = {"error": {"message": "This model's maximum context length is 2048 tokens.", "code": 400}}
CREDENTIAL = "sk-remote-very-secret"


def terms(remote: Engine, **changes: Any) -> EscalationTerms:
    """Terms for every hard reason and for the form."""
    agreed = EscalationTerms(
        url=f"{remote.url}/v1",
        model="big",
        credential=CREDENTIAL,
        prompt_price=Decimal("2.5"),
        completion_price=Decimal("10"),
        monthly_budget=Decimal(50),
        reasons=("context", "tools", "format"),
        consent="No personal data in these contracts; agreed with legal.",
    )
    return replace(agreed, **changes)


def ask(
    serving: Serving, secret: str, headers: dict[str, str] | None = None, **fields: Any
) -> httpx.Response:
    return httpx.post(
        f"{serving.url}/v1/chat/completions",
        headers={"authorization": f"Bearer {secret}", **(headers or {})},
        json={"model": "clauses", "messages": ASK, **fields},
        timeout=20,
    )


def rows(count: int) -> list[UsageRecord]:
    """What is booked once there is so much of it: what apps saw first, then what they did not see."""
    wait_for(lambda: UsageRecord.objects.count() == count)
    return list(UsageRecord.objects.order_by("shadow"))
