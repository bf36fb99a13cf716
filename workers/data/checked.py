"""What one row came to, told as it is checked."""

from collections.abc import Sequence
from dataclasses import dataclass

from workers.contract import Problem
from workers.data.chat import Extra, Row
from workers.data.strict_json import shown

SHOWN_VALUE = 80


@dataclass(slots=True)
class CheckedLine:
    """What one row came to."""

    number: int
    row: Row | None = None
    """None when there are errors."""
    errors: Sequence[Problem] = ()
    warnings: Sequence[Problem] = ()
    ignored: Sequence[str] = ()
    """Paths of fields that are not read, such as `id` or `messages[].name`."""
    extra: Extra | None = None
    """Those of them that stand beside the conversation, with their values."""
    source: str = ""
    mended: bool = False
    """It was in error until roles were given other names."""
    raw: object = None
    """What stands in the file, of a row in error: bytes, or values already read."""

    def error(self, place: str, code: str, message: str, value: object = None) -> None:
        self.errors = _with(self.errors, self._problem(place, code, message, value))

    def warn(self, place: str, code: str, message: str, value: object = None) -> None:
        self.warnings = _with(self.warnings, self._problem(place, code, message, value))

    def _problem(self, place: str, code: str, message: str, value: object) -> Problem:
        found = "" if value is None else shown(value, SHOWN_VALUE)
        return Problem(
            row=self.number, field=place, code=code, message=message, value=found, source=self.source
        )


def _with(found: Sequence[Problem], more: Problem) -> Sequence[Problem]:
    """A list is made for the first one: most rows have none."""
    if isinstance(found, list):
        found.append(more)
        return found
    return [more]


def kind_of(value: object) -> str:
    """What a value is, in words."""
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    if value is None:
        return "null"
    return names.get(type(value), "a number")
