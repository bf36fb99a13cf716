"""`POST /v1/feedback`: what an app thinks of an answer it got, spooled like a usage record.

Whether the exchange is kept stands in Postgres, which no request waits for. So every well-formed feedback is
taken, and only what belongs to a kept exchange of the very same key is copied.
"""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from stillhouse.gateway.auth import Caller
from stillhouse.gateway.errors import ApiError, invalid
from stillhouse.gateway.fastjson import encode_ascii
from stillhouse.gateway.requests import read_json

PATH = "/v1/feedback"
MOST_CHARACTERS = 64 * 1024
"""Of a correction."""
_RATINGS = ("up", "down")
_REQUEST = re.compile(r"req_[0-9a-z]{1,36}", re.ASCII)
_FIELDS = frozenset({"request_id", "rating", "correction"})
_MARK = b'{"feedback":'

# What is not kept is dropped: the alias keeps nothing, the answer went to somebody else, or it has expired.
# Where the record is not here yet it may come by another gateway; then the keeper drops what nothing follows.
COPY = """
    INSERT INTO usage_feedback AS known (request, workspace_id, caller, rating, correction, at)
    SELECT DISTINCT ON (feedback, sent.workspace_id, sent.caller)
        feedback, sent.workspace_id, sent.caller, sent.rating, sent.correction, sent.at
    FROM jsonb_to_recordset(%s::jsonb) AS sent(
        feedback text, workspace_id text, caller text, rating text, correction text, at timestamptz)
    LEFT JOIN usage_usagerecord AS record ON record.id = feedback
    WHERE EXISTS (
        SELECT FROM publishing_keeping AS keeping
        JOIN publishing_alias AS named ON named.id = keeping.alias_id
        WHERE named.workspace_id = sent.workspace_id AND (record.id IS NULL OR named.name = record.alias)
    ) AND (record.id IS NULL OR (
        record.workspace_id = sent.workspace_id AND record.caller = sent.caller
        AND EXISTS (SELECT FROM usage_keptexchange AS kept WHERE kept.id = feedback)))
    ORDER BY feedback, sent.workspace_id, sent.caller, sent.at DESC
    ON CONFLICT ON CONSTRAINT usage_feedback_once DO UPDATE
    SET rating = EXCLUDED.rating, correction = EXCLUDED.correction, at = EXCLUDED.at
    WHERE known.at < EXCLUDED.at"""


@dataclass(frozen=True, slots=True)
class Feedback:
    """A checked one."""

    request: str
    """Our id of the request it is about."""
    rating: str
    correction: str | None

    def line(self, caller: Caller) -> bytes:
        """For the spool. The correction is JSON inside of text: whatever characters an app sends, the line
        around it stays valid."""
        row = {
            "feedback": self.request,
            "workspace_id": caller.workspace_id,
            "caller": caller.id,
            "rating": self.rating,
            "correction": "" if self.correction is None else json.dumps(self.correction),
            "at": datetime.now(UTC).isoformat(),
        }
        return encode_ascii(row)

    def answer(self) -> dict[str, object]:
        return {"object": "feedback", "request_id": self.request, "rating": self.rating}


def is_feedback(line: bytes) -> bool:
    """Whether a line of the spool is one of these; else it is a usage record."""
    return line.startswith(_MARK)


def check_caller(caller: Caller) -> None:
    """Raises ApiError 403 for a grant: people in the playground and evaluations are no apps."""
    if caller.key is None:
        raise ApiError(403, "key_needed", "Feedback is sent with the API key that the answer was asked with.")


def parse_feedback(raw: bytes) -> Feedback:
    """The feedback in `raw`; raises ApiError 400 that names the field and what to do."""
    body = {name: value for name, value in read_json(raw).items() if value is not None}
    if unknown := sorted(body.keys() - _FIELDS):
        message = "This field is not known here. Send `request_id`, `rating` and perhaps `correction`."
        raise invalid(unknown[0][:100], message, code="unknown_parameter")
    request, rating, correction = body.get("request_id"), body.get("rating"), body.get("correction")
    if not isinstance(request, str) or not _REQUEST.fullmatch(request):
        message = "`request_id` is what the header x-stillhouse-request of the answer said: `req_...`."
        raise invalid("request_id", message)
    if rating not in _RATINGS:
        raise invalid("rating", '`rating` is "up" or "down".')
    if correction is not None and not isinstance(correction, str):
        raise invalid("correction", "`correction` is a text: the answer as it should have been.")
    if correction is not None and len(correction) > MOST_CHARACTERS:
        message = f"`correction` has {len(correction):,} characters; {MOST_CHARACTERS:,} is the most."
        raise invalid("correction", message, code="correction_too_long")
    return Feedback(request, str(rating), correction if correction and correction.strip() else None)
