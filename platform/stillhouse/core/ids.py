"""Public identifiers: a word for the kind, a time-ordered part, and randomness."""

import secrets
import time

from django.db import models

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
_TIME_CHARS = 9  # 45 bits of milliseconds: until the year 3084
_RANDOM_CHARS = 13  # 65 bits


def _encode(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 32)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def new_id(prefix: str) -> str:
    """A new identifier such as `run_1m3k2v9qk7t0x5h8d2w4nb6ye`; ids of one kind sort by time of creation."""
    milliseconds = time.time_ns() // 1_000_000
    return f"{prefix}_{_encode(milliseconds, _TIME_CHARS)}{_encode(secrets.randbits(65), _RANDOM_CHARS)}"


class IdField(models.CharField):  # type: ignore[type-arg]
    """A primary key made by `new_id(prefix)`."""

    def __init__(self, prefix: str = "", **options: object) -> None:
        self.prefix = prefix
        options.setdefault("max_length", 40)
        options.setdefault("primary_key", True)
        options.setdefault("editable", False)
        options.setdefault("default", self._new)
        super().__init__(**options)  # type: ignore[arg-type]

    def _new(self) -> str:
        return new_id(self.prefix)

    def deconstruct(self) -> tuple[str, str, list[object], dict[str, object]]:
        name, path, args, options = super().deconstruct()
        options.pop("default", None)
        return name, path, list(args), {**options, "prefix": self.prefix}
