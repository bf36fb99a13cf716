"""Where prompts may go to. Pure: the gateway asks this again before every escalation."""

from collections.abc import Collection
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}


def origin_of(url: str) -> str | None:
    """`https://host:443` of a base URL, its port always there; None for what is no plain http(s) address."""
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS[parts.scheme]
    except (KeyError, ValueError):
        return None
    if not parts.hostname or parts.username is not None or parts.password is not None:
        return None
    if parts.query or parts.fragment or any(character.isspace() for character in url):
        return None
    return f"{parts.scheme}://{parts.hostname}:{port}"


def is_allowed(url: str, destinations: Collection[str]) -> bool:
    """Whether the operator's list of destinations has the URL's origin."""
    origin = origin_of(url)
    return origin is not None and origin in {origin_of(one) for one in destinations}
