"""Who is asking: an app by its key, or a person or job by a grant. No database, no ORM."""

from dataclasses import dataclass
from time import time

from stillhouse.accounts.grants import read_grant
from stillhouse.accounts.keys import digest_of, looks_valid
from stillhouse.gateway.errors import ApiError
from stillhouse.gateway.snapshot import Key, Snapshot

_MAX_TOKEN_CHARS = 4096
_MISSING = (
    "Send your API key in the header `Authorization: Bearer sk-sh-...`; "
    "keys are made on the page Keys of your workspace."
)
_WRONG = (
    "This API key is not right, was revoked, or has expired. Check for a missing character, "
    "or ask for a new key on the page Keys of your workspace."
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is, and what it may name."""

    id: str
    """Id of the API key, or of the person or job a grant was made for."""
    workspace_id: str
    models: frozenset[str] | None = None
    """The only names it may call; None for whatever an app of the workspace may call."""
    key: Key | None = None
    """Its terms; a grant has none."""

    def require(self, scope: str) -> None:
        """Raises ApiError 403 unless the key is for this."""
        if self.key is not None and scope not in self.key.scopes:
            raise ApiError(
                403,
                "missing_scope",
                f"This key lacks the scope `{scope}`. Ask a lead of the workspace to add it "
                "on the page API keys.",
            )


def bearer_token(headers: list[tuple[bytes, bytes]]) -> str:
    """The token of the Authorization header; raises ApiError 401 when there is none."""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            if scheme.lower() == b"bearer" and 0 < len(token) <= _MAX_TOKEN_CHARS:
                return token.strip().decode("latin-1")
            break
    raise ApiError(401, "invalid_api_key", _MISSING)


def identify(token: str, snapshot: Snapshot) -> Caller | None:
    """The caller, or None for a well-formed key that this snapshot does not know (a fresher one may).

    The look-up needs no constant-time comparison: it is by HMAC, which nobody can steer byte by byte.
    """
    if token.startswith("sg-"):
        if grant := read_grant(token):
            return Caller(grant.caller, grant.workspace_id, grant.models)
        raise wrong_key()
    if not looks_valid(token):
        raise wrong_key()
    key = snapshot.keys.get(digest_of(token))
    if key is not None and key.expires is not None and key.expires <= time():
        raise wrong_key()
    return Caller(key.id, key.workspace_id, key=key) if key else None


def wrong_key() -> ApiError:
    return ApiError(401, "invalid_api_key", _WRONG)
