"""What the ledger keeps of a request: whose it was, what answered, how much. Its content
only where a workspace keeps it."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import perf_counter

from stillhouse.gateway.fastjson import encode_ascii
from stillhouse.gateway.inflight import Guard
from stillhouse.gateway.keeping import Kept


@dataclass(slots=True)
class Record:
    """One request, filled in as it goes. A UsageRecord row comes of it once it is known what answers."""

    id: str
    client_id: str = ""
    """The app's own `x-request-id`, for the log."""
    workspace_id: str = ""
    caller: str = ""
    key: str = ""
    """Id of the API key; empty for a grant."""
    model: str = ""
    alias: str = ""
    served: str = ""
    version: str = ""
    shadow: bool = False
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    status: int = 0
    """HTTP status; 0 until it is known, and for good where the gateway died over the request."""
    code: str = ""
    """Of the error, for the log."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    first_token_ms: float | None = None
    total_ms: float = 0.0
    finish_reason: str = ""
    cancelled: bool = False
    escalation: str = ""
    """Why a remote model was asked."""
    prompt_price: int = 0
    completion_price: int = 0
    """Of a token, in billionths of the currency's unit."""
    kept: Kept | None = None
    """Prompt and answer, where the workspace keeps them."""
    started: float = field(default_factory=perf_counter)
    guard: Guard | None = None
    """Where the counts so far outlive this process; set while the request is in flight."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def cost(self) -> int:
        return self.prompt_tokens * self.prompt_price + self.completion_tokens * self.completion_price

    def elapsed_ms(self) -> float:
        return (perf_counter() - self.started) * 1000

    def counted(self) -> None:
        """The counts have changed."""
        if self.guard is not None:
            self.guard.count(self.prompt_tokens, self.completion_tokens, self.reasoning_tokens)

    def log_fields(self) -> dict[str, object]:
        """For the log line of the request."""
        first = self.first_token_ms
        return {
            "request": self.id,
            "client_request": self.client_id,
            "workspace": self.workspace_id,
            "caller": self.caller,
            "model": self.model,
            "served": self.served,
            "shadow": self.shadow,
            "status": self.status,
            "code": self.code,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "first_token_ms": None if first is None else round(first, 2),
            "total_ms": round(self.total_ms, 2),
            "finish_reason": self.finish_reason,
            "cancelled": self.cancelled,
            "escalation": self.escalation,
        }

    def line(self) -> bytes:
        """The columns of usage_usagerecord as a JSON object on one line."""
        row = {
            "id": self.id,
            "workspace_id": self.workspace_id,
            "caller": self.caller[:40],
            "key": self.key,
            "model": self.model,
            "alias": self.alias,
            "served": self.served,
            "version": self.version,
            "shadow": self.shadow,
            "at": self.at.isoformat(),
            "status": self.status,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "first_token_ms": self.first_token_ms,
            "total_ms": self.total_ms,
            "finish_reason": self.finish_reason[:30],
            "cancelled": self.cancelled,
        }
        if self.escalation:
            row["escalation"] = self.escalation
            row["prompt_price"], row["completion_price"] = self.prompt_price, self.completion_price
        if self.kept is not None and self.status == 200 and not self.cancelled:
            row |= self.kept.fields()
        return encode_ascii(row)
