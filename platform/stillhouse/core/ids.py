"""Public identifiers: a word for the kind, a time-ordered part, and randomness."""

import secrets
import time

from django.db import models

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_RANDOM_BITS = 65  # 13 digits, after 9 of milliseconds: 45 bits, until the year 3084
_SHIFTS = range(100, -1, -10)  # two digits at a time: the gateway makes an id before it asks an engine


def new_id(prefix: str) -> str:
    """A new identifier such as `run_1m3k2v9qk7t0x5h8d2w4nb6ye`; ids of one kind sort by time of creation."""
    milliseconds = time.time_ns() // 1_000_000
    number = milliseconds << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    return f"{prefix}_{''.join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])}"


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
