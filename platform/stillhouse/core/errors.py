"""The two kinds of error: what a person can mend, and what is ours."""

from dataclasses import dataclass


@dataclass
class UserError(Exception):
    """Something the person who asked can mend. Shown to them as it is.

    `code` is stable snake_case; `message` says what happened with the offending value; `place` names the
    field, row or setting; `next_step` says what to do.
    """

    code: str
    message: str
    place: str = ""
    next_step: str = ""
    status: int = 400

    def __str__(self) -> str:
        return f"{self.message} {self.next_step}".strip()


class NotFound(UserError):
    """The thing does not exist, or belongs to somebody else: the two look the same on purpose."""

    def __init__(self, what: str) -> None:
        super().__init__(code="not_found", message=f"There is no such {what} here.", status=404)


class Conflict(UserError):
    """The thing has changed since the person looked at it."""

    def __init__(self, code: str, message: str, next_step: str = "Reload the page and look again.") -> None:
        super().__init__(code=code, message=message, next_step=next_step, status=409)


class PlatformError(Exception):
    """Our own fault. Logged with its cause; people see a plain sentence and an id to quote."""
