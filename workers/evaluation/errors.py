"""Why an evaluation could not be made."""

from typing import Literal


class EvaluationError(Exception):
    """A stable code and a sentence for a person. `user`: the data; `platform`: ours, worth another try."""

    def __init__(self, code: str, message: str, fault: Literal["user", "platform"] = "platform") -> None:
        super().__init__(message)
        self.code, self.message, self.fault = code, message, fault


class EvaluationCancelled(Exception):
    """Whoever asked for the evaluation does not want it any more."""
