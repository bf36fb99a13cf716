"""What can stop a run, said for the person who reads it."""

from typing import Literal


class TrainingError(Exception):
    """A run that cannot start or go on: a stable code, and a sentence with what happened and what to do."""

    def __init__(self, code: str, message: str, fault: Literal["user", "platform"] = "user") -> None:
        super().__init__(code, message, fault)
        self.code = code
        self.message = message
        self.fault = fault

    def __str__(self) -> str:
        return self.message


class Cancelled(Exception):
    """Somebody asked the run to stop. Checkpoints stay; no adapter was written."""
