"""Why a worker's call is refused, or not taken now."""

from dataclasses import dataclass
from typing import Literal

from workers.contract import Refusal

Code = Literal[
    "not_claimable", "stale_token", "unknown_job", "bad_worker_token", "contract_too_old", "bad_request"
]

STATUS: dict[str, int] = {
    "bad_request": 400,
    "bad_worker_token": 401,
    "unknown_job": 404,
    "not_claimable": 409,
    "stale_token": 409,
    "contract_too_old": 426,
}


class NoRoom(Exception):
    """Postgres has no room for what was sent, but the job is held: the worker goes on, and sends it again."""


@dataclass
class Refused(Exception):
    """The worker stops this job and does not ask again."""

    code: Code
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    @property
    def status(self) -> int:
        """HTTP status."""
        return STATUS[self.code]

    @property
    def refusal(self) -> Refusal:
        return Refusal(code=self.code, message=self.message)
