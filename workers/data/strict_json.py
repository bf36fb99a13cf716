"""JSON read strictly: what two readers could understand differently is refused."""

import json
import math

MAX_DEPTH = 64
"""Levels of lists and objects. Chats need five; a parser that recurses must not be asked for a million."""


class JsonProblem(Exception):
    """Why a text is not JSON that can be used: a stable code, a sentence and, where known, the field."""

    def __init__(self, code: str, message: str, field: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field


def parse(text: str) -> object:
    """The JSON value of `text`. Raises JsonProblem: `not_json`, `duplicate_key`, `bad_number`, `too_deep`."""
    try:
        value: object = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise JsonProblem(
            "not_json",
            f"This line is not JSON: {error.msg[:1].lower()}{error.msg[1:]} at character {error.pos + 1}. "
            "Write one complete JSON object per line.",
        ) from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        # Python refuses to read integers of thousands of digits.
        raise JsonProblem(
            "bad_number", "A number in this line has too many digits. Write it as text."
        ) from None
    if _is_deeper(value, MAX_DEPTH):
        raise _too_deep()
    return value


def _too_deep() -> JsonProblem:
    return JsonProblem(
        "too_deep", f"Lists and objects are nested more than {MAX_DEPTH} levels deep. Flatten them."
    )


def _is_deeper(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    if levels == 0:
        return True
    return any(
        _is_deeper(item, levels - 1) for item in (value.values() if isinstance(value, dict) else value)
    )


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise JsonProblem(
            "duplicate_key",
            f"The key {shown(twice)} stands twice in one object, so its value is unclear. Keep one.",
            field=twice[:60],
        )
    return found


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise JsonProblem(
            "bad_number", f"The number {shown(text)} is too large to be read. Write it as text."
        )
    return value


def _constant(text: str) -> float:
    raise JsonProblem("bad_number", f"`{text}` is not a JSON number. Use null, or leave the field out.")


def shown(value: object, most: int = 40) -> str:
    """`value` quoted for a sentence, cut to `most` characters, without anything that could break the line."""
    text = value if isinstance(value, str) else repr(value)
    text = text[: most + 1].encode("utf-8", "replace").decode()
    return repr(text if len(text) <= most else text[: most - 1] + "…")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number, parse_constant=_constant)
