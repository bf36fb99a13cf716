"""Fields beside the conversation: kept with a row as one JSON text, looked up by path."""

from collections.abc import Iterator

import msgspec

from workers.data.chat import Extra

MAX_LEVELS = 4
"""Levels of objects whose fields have paths of their own."""
_encode_sorted = msgspec.json.Encoder(order="sorted").encode
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(type=dict[str, object]).decode


def extra_json(extra: Extra | None) -> str | None:
    """The fields as JSON text; what is no character becomes a question mark, what is no number null."""
    if not extra:
        return None
    try:
        return _encode(extra).decode()
    except UnicodeEncodeError:
        return _encode(_clean(extra)).decode()


def extra_of(text: str | None) -> Extra | None:
    """The fields of a row as they were kept. Raises ValueError for a text that `extra_json` did not make."""
    try:
        return _decode(text) if text else None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from None


def value_at(extra: Extra | None, path: str) -> str | None:
    """The value at a path such as `metadata.customer`, as text; None where there is none to speak of.

    A name that holds a dot itself is found too. A number and its text are the same value.
    """
    found = _walk(extra, path)
    if found is None or found == "":
        return None
    text = found if isinstance(found, str) else _encode_sorted(found).decode()
    return text.strip() or None


def _walk(value: object, path: str) -> object:
    if not path:
        return value
    if not isinstance(value, dict):
        return None
    if path in value:
        return value[path]
    for index, letter in enumerate(path):
        if letter == "." and path[:index] in value:
            found = _walk(value[path[:index]], path[index + 1 :])
            if found is not None:
                return found
    return None


def paths(extra: Extra, before: str = "", levels: int = MAX_LEVELS) -> Iterator[str]:
    """The path of every field, and of the fields inside of it."""
    for name, value in extra.items():
        yield before + name
        if isinstance(value, dict) and levels > 1:
            yield from paths(value, f"{before}{name}.", levels - 1)


def _clean(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {str(_clean(key)): _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list) else value
