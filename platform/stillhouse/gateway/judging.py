"""Whether an answer has the form that its request asked for.

The engine holds an answer to its grammar while it is made, so what fails here was cut off, or came from an
engine that ignores `response_format`. The check is a subset of JSON Schema without patterns and without
anything fetched: it takes as long as the answer is long, whatever schema an app sends.
"""

import json
from collections.abc import Mapping
from typing import Any

from stillhouse.gateway.requests import Body

_MOST_STEPS = 20_000
"""Of comparing a value with a schema, which may refer to itself; what takes longer counts as fitting."""
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
}


def wants_form(request_body: Body) -> bool:
    """Whether the answers have to be JSON."""
    return request_body.get("response_format", {}).get("type") in ("json_object", "json_schema")


def has_form(request_body: Body, choices: list[Body]) -> bool:
    """Whether every choice that is a text, and no call of a tool, has the form asked for."""
    wanted = request_body["response_format"]
    schema = (wanted.get("json_schema") or {}).get("schema") if wanted["type"] == "json_schema" else None
    for choice in choices:
        message = choice.get("message") or {}
        if message.get("tool_calls") or message.get("refusal"):
            continue
        try:
            value = json.loads(message.get("content") or "")
        except (ValueError, RecursionError):
            return False
        if not (fits(value, schema) if isinstance(schema, dict) else isinstance(value, dict)):
            return False
    return True


def fits(value: Any, schema: Body) -> bool:
    """Whether a value has the types, fields, entries and fixed values that a schema names."""
    try:
        return _Comparison(schema).fits(value, schema)
    except (RecursionError, TypeError):
        return True  # no schema that anybody could hold an answer to


class _Comparison:
    def __init__(self, root: Body) -> None:
        self._root = root
        self._steps = 0

    def fits(self, value: Any, schema: Any) -> bool:
        self._steps += 1
        if not isinstance(schema, dict) or self._steps > _MOST_STEPS:
            return schema is not False
        if "$ref" in schema:
            return self.fits(value, self._resolve(schema["$ref"]))
        choices = [schema[word] for word in ("anyOf", "oneOf") if isinstance(schema.get(word), list)]
        return (
            value in schema.get("enum", [value])
            and value == schema.get("const", value)
            and _has_type(value, schema.get("type"))
            and all(any(self.fits(value, one) for one in some) for some in choices)
            and self._parts_fit(value, schema)
        )

    def _parts_fit(self, value: Any, schema: Body) -> bool:
        if isinstance(value, dict):
            known = schema.get("properties")
            known = known if isinstance(known, dict) else {}
            if any(name not in value for name in schema.get("required") or ()):
                return False
            if schema.get("additionalProperties") is False and not value.keys() <= known.keys():
                return False
            return all(self.fits(part, known[name]) for name, part in value.items() if name in known)
        if isinstance(value, list):
            return all(self.fits(part, schema.get("items")) for part in value)
        return True

    def _resolve(self, reference: Any) -> Any:
        """The part of this very schema that `#/a/b` names; None, which anything fits, for all else."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        found: Any = self._root
        for name in reference.removeprefix("#").split("/")[1:]:
            found = found.get(name) if isinstance(found, dict) else None
        return found


def _has_type(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return any(_has_type(value, one) for one in wanted)
    if wanted in ("number", "integer"):
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return not isinstance(value, bool) and (
            whole if wanted == "integer" else isinstance(value, int | float)
        )
    return not isinstance(wanted, str) or wanted not in _TYPES or isinstance(value, _TYPES[wanted])
