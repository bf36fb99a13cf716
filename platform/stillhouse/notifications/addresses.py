"""Which address a webhook may be sent to: a public one, or a host that the operator has named.

A name is resolved once, every address it has is checked, and the connection goes to the one that was checked:
a name that answers differently a moment later leads nowhere else.
"""

import socket
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from stillhouse.core.errors import UserError

_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True)
class Destination:
    """A checked address."""

    scheme: str
    host: str
    port: int
    path: str
    """With its query."""
    address: str
    """IP address to connect to."""


def destination(url: str, private_hosts: Collection[str]) -> Destination:
    """Resolve and check; raises UserError `bad_webhook_url`, `host_unknown` or `private_address`.

    A host in `private_hosts` may be private, and only such a one may be reached without TLS.
    """
    scheme, host, port, path = _parts(url)
    named = host in private_hosts
    if scheme == "http" and not named:
        raise _bad(f"{url[:100]!r} has no TLS.", "Use an address that begins with https://.")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(
            "host_unknown",
            f"The host {host[:100]} cannot be found.",
            "url",
            "Check its name, or ask your operator whether this site can resolve it.",
        ) from error
    addresses = [str(entry[4][0]) for entry in found]
    if not named and not all(_is_public(address) for address in addresses):
        raise UserError(
            "private_address",
            f"{host[:100]} is an address inside a network, and notices are sent to public ones only.",
            "url",
            "Ask your operator to name the host in WEBHOOK_PRIVATE_HOSTS if it is meant.",
        )
    return Destination(scheme, host, port, path, addresses[0])


def _parts(url: str) -> tuple[str, str, int, str]:
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS[parts.scheme]
    except (KeyError, ValueError) as error:
        raise _bad(f"{url[:100]!r} is no web address.", "Use one that begins with https://.") from error
    odd = parts.username is not None or parts.password is not None or parts.fragment
    if not parts.hostname or odd or len(url) > 300 or not url.isascii() or any(c.isspace() for c in url):
        raise _bad(f"{url[:100]!r} is no plain web address.", "Leave out names, passwords and #parts.")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return parts.scheme, parts.hostname, port, path


def _is_public(address: str) -> bool:
    found = ip_address(address.partition("%")[0])
    inner = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    return found.is_global and not found.is_multicast and (inner is None or inner.is_global)


def _bad(message: str, next_step: str) -> UserError:
    return UserError("bad_webhook_url", message, "url", next_step)
