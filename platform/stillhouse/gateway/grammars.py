"""What a constraint of the output's form would cost the engine, before it gets there.

The engine makes a grammar of a schema, and that takes the square of the properties of an object: 500 optional
ones take a second and a half of two cores, 3,000 a minute, in which everybody else waits.
"""

import json
from collections.abc import Iterator
from typing import Any

from stillhouse.gateway.errors import invalid

_MAX_CHARS = 256 * 1024
_MOST_PROPERTIES = 500
"""In one object; of several objects, as many as cost the same together."""


def check_grammar(name: str, value: Any) -> None:
    """Refuse a constraint, or tools, that would keep the engine busy for long. Raises ApiError 400."""
    if len(json.dumps(value)) > _MAX_CHARS:
        raise invalid(name, f"`{name}` may have at most {_MAX_CHARS} characters.")
    if sum(len(properties) ** 2 for properties in _properties(value)) > _MOST_PROPERTIES**2:
        raise invalid(
            name,
            f"The schema in `{name}` has too many properties: at most {_MOST_PROPERTIES} in one object, and "
            "fewer where there are several. Ask for a part of them at a time.",
        )


def _properties(value: Any) -> Iterator[dict[str, Any]]:
    """Of every object in a schema, also in one that is sent as text."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str) and '"properties"' in one:
            try:
                left.append(json.loads(one))
            except (ValueError, RecursionError):
                continue  # the engine says what is wrong with it
        elif isinstance(one, list):
            left += one
        elif isinstance(one, dict):
            if isinstance(properties := one.get("properties"), dict):
                yield properties
            left += one.values()
