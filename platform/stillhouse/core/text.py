"""Text from outside: what may be a name, and what Postgres can store."""

import unicodedata

from stillhouse.core.errors import UserError

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def clean_name(text: str, *, what: str, limit: int = 120) -> str:
    """A name that people gave, trimmed; UserError `bad_name` for one that cannot be shown or filed safely."""
    name = unicodedata.normalize("NFC", text).strip()
    if not name:
        raise UserError(
            "bad_name", f"The {what} is empty.", place="name", next_step=f"Give the {what} a name."
        )
    if len(name) > limit:
        raise UserError(
            "bad_name",
            f"The {what} has {len(name)} characters; {limit} is the most.",
            place="name",
            next_step="Choose a shorter name.",
        )
    if any(unicodedata.category(character).startswith("C") for character in name):
        raise UserError(
            "bad_name",
            f"The {what} contains a control or invisible character.",
            place="name",
            next_step="Type the name again instead of pasting it.",
        )
    if "/" in name or "\\" in name or name.startswith("."):
        raise UserError(
            "bad_name",
            f"The {what} {name[:60]!r} looks like a path: it contains a slash or begins with a dot.",
            place="name",
            next_step="Use letters, digits, spaces, dashes and dots inside the name.",
        )
    return name


def storable(text: str) -> str:
    """The text without what Postgres refuses in text and JSON: NUL and lone surrogates become U+FFFD."""
    if "\0" in text:
        text = text.replace("\0", REPLACEMENT)
    return (
        text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if not _encodable(text)
        else text
    )


def storable_json(value: object) -> object:
    """`storable` for every string inside a JSON value, keys included."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {storable(str(key)): storable_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [storable_json(item) for item in value]
    return value


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
