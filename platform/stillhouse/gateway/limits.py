"""What a key may use: requests and tokens a minute, tokens a month. In memory, for this process.

The minutes are a leaky bucket: what was used flows off at the limit's own rate, so an app that was quiet may
use a whole minute's worth at once and then goes on at that rate. Tokens are known only when they have been
made: a request is let in while the minute has tokens left, and what it then used beyond them is paid back by
the minutes that follow. Over time no key gets more than its rate.

Bounds with several gateways: each keeps the minutes by itself, so n of them together let in up to n times the
limit of a minute. The month is counted from the ledger of all of them plus what this one has served since
it last read, so it can be overdrawn by what was in flight and what the others served between two reads.
What leaves the site is not of these: the budget of an escalation is one for all gateways, see `budgets`.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from math import ceil
from time import monotonic

from stillhouse.gateway.errors import ApiError, Headers
from stillhouse.gateway.snapshot import Key
from stillhouse.gateway.usage import Record

Clock = Callable[[], float]


class Bucket:
    """How much of a minute is used."""

    __slots__ = ("_at", "_used")

    def __init__(self) -> None:
        self._used = 0.0
        self._at = 0.0

    def used(self, limit: int, now: float) -> float:
        """After what has flowed off since the last look."""
        self._used = max(0.0, self._used - (now - self._at) * limit / 60)
        self._at = now
        return self._used

    def add(self, amount: float) -> None:
        self._used += amount


class Limits:
    """All keys' use, as this process knows it."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._requests: dict[str, Bucket] = {}
        self._tokens: dict[str, Bucket] = {}
        self._unread: Counter[str] = Counter()
        """Tokens by key that the snapshot's sums of the month do not have yet."""

    def admit(self, key: Key, *, uses_tokens: bool = True) -> Headers:
        """Count one request and return the headers that tell the app where it stands.

        One that uses no tokens is not asked whether any are left.

        Raises:
            ApiError: 429 rate_limit_exceeded, to be repeated after `retry_after`; 429 insufficient_quota, not
            to be repeated, when the month is used up.
        """
        if uses_tokens:
            self._check_month(key)
        now = self._clock()
        headers: Headers = []
        if limit := key.requests_per_minute:
            requests = self._requests.setdefault(key.id, Bucket())
            used = requests.used(limit, now) + 1
            headers += _headers("requests", limit, used)
            if used > limit:
                raise _too_fast("requests", limit, used - limit, headers)
        if uses_tokens and (limit := key.tokens_per_minute):
            used = self._tokens.setdefault(key.id, Bucket()).used(limit, now)
            headers += _headers("tokens", limit, used)
            if used >= limit:
                raise _too_fast("tokens", limit, used - limit, headers)
        if key.requests_per_minute:
            requests.add(1)
        return headers

    def _check_month(self, key: Key) -> None:
        budget = key.monthly_tokens
        if budget is not None and key.tokens_this_month + self._unread[key.id] >= budget:
            raise _month_used_up(budget)

    def spend(self, record: Record) -> None:
        """Count what a request used."""
        if not record.key or record.shadow:
            return
        self._unread[record.key] += record.tokens
        self._tokens.setdefault(record.key, Bucket()).add(record.tokens)

    def settle(self, copied: Mapping[str, int], keys: Collection[str]) -> None:
        """A fresh snapshot has these tokens in its sums; what is not of `keys`, its keys, is forgotten."""
        self._unread.subtract(copied)
        for known in (self._requests, self._tokens, self._unread):
            for gone in [key for key in known if key not in keys]:
                del known[gone]


def _headers(kind: str, limit: int, used: float) -> Headers:
    """As OpenAI names them."""
    remaining = max(0, int(limit - used))
    reset = _duration(min(used, limit) * 60 / limit)
    name = kind.encode()
    return [
        (b"x-ratelimit-limit-" + name, b"%d" % limit),
        (b"x-ratelimit-remaining-" + name, b"%d" % remaining),
        (b"x-ratelimit-reset-" + name, reset.encode()),
    ]


def _duration(seconds: float) -> str:
    """`6m0s`, `1.5s`, `20ms`: as OpenAI writes them."""
    if seconds < 1:
        return f"{ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{rest:.3g}s" if minutes else f"{rest:.3g}s"


def _too_fast(kind: str, limit: int, over: float, headers: Headers) -> ApiError:
    wait = max(1, ceil(over * 60 / limit))
    return ApiError(
        429,
        "rate_limit_exceeded",
        f"This key may use {limit} {kind} a minute, and has. Try again in {wait} s, "
        "or ask a lead of the workspace for a higher limit on the page API keys.",
        retry_after=wait,
        more_headers=headers,
    )


def _month_used_up(budget: int) -> ApiError:
    now = datetime.now(UTC)
    following = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
    return ApiError(
        429,
        "insufficient_quota",
        f"This key's budget of {budget} tokens a month is used up. "
        f"It begins anew on {following:%Y-%m-%d} UTC; "
        "a lead of the workspace can raise it on the page API keys.",
        kind="insufficient_quota",
    )
