"""Errors as OpenAI's clients know them: `{"error": {"message", "type", "param", "code"}}`."""

import json
from dataclasses import dataclass, field

Headers = list[tuple[bytes, bytes]]

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "server_error",
}


@dataclass
class ApiError(Exception):
    """An answer that is no answer. `message` says what happened and what to do; it never repeats a prompt."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after: int | None = None
    """Seconds after which asking again makes sense; None tells the client not to ask again."""
    kind: str = ""
    """OpenAI's word for the kind of error, where it does not follow from the status."""
    more_headers: Headers = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.message}"

    def payload(self) -> dict[str, object]:
        kind = self.kind or _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        return json.dumps(self.payload(), ensure_ascii=False).encode("utf-8", "replace")

    def headers(self) -> Headers:
        if self.retry_after is None:
            # OpenAI's clients repeat 408, 409, 429 and every 5xx by themselves, unless they read this.
            return [(b"x-should-retry", b"false"), *self.more_headers]
        return [(b"retry-after", b"%d" % self.retry_after), *self.more_headers]


def invalid(param: str | None, message: str, *, code: str = "invalid_value") -> ApiError:
    """400 about one field of the request."""
    return ApiError(400, code, message, param=param)
