"""Addresses: where an orchestrator listens, or a site serves its weights, as people write it.

Decides the port taken where none is named. Must not know what is spoken there, nor resolve names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from atoll.model.errors import FieldError

# Unassigned by IANA, above the ports that need privileges and below those that outgoing connections take.
DEFAULT_PORT: Final = 7443
PORT_MAX: Final = 65_535
ADDRESS_RULE: Final = f"HOST:PORT such as '127.0.0.1:{DEFAULT_PORT}', '[::1]:{DEFAULT_PORT}' or 'atoll.example.com'"
# As DNS names, which IPv4 addresses are too.
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?\Z")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]{2,45}\Z")
# As long as names of hosts, a port and a few folders can be.
_URL_CHARS: Final = 500
_URL = re.compile(r"https?://(?P<address>[^/\s]+)(?P<path>(?:/[A-Za-z0-9._~-]+)*)/?\Z", re.ASCII)
WEIGHTS_URL_RULE: Final = (
    f"http:// or https://, HOST or HOST:PORT, and perhaps folders; at most {_URL_CHARS} characters, no user, query or '..'"
)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Address:
    """A host, by name or number, and a TCP port."""

    host: str
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(field: str, value: object, *, lowest_port: int = 1) -> Address:
    """`value` as an address; without a port it has the default one. FieldError when it is none.

    `lowest_port` is 0 for a listener that takes any free port.
    """
    if not isinstance(value, str):
        raise FieldError(field, value, ADDRESS_RULE)
    if value.startswith("["):
        host, bracket, rest = value[1:].partition("]")
        legal = bool(bracket) and bool(_IPV6.match(host)) and ":" in host
        colon, port = rest[:1], rest[1:]
        legal = legal and colon in {"", ":"}
    else:
        host, colon, port = value.partition(":")
        legal = bool(_HOST.match(host)) and ".." not in host
    if not legal or (colon and not (port.isascii() and port.isdecimal() and len(port) <= 5)):
        raise FieldError(field, value, ADDRESS_RULE)
    number = int(port) if colon else DEFAULT_PORT
    if not lowest_port <= number <= PORT_MAX:
        raise FieldError(field, value, f"a port from {lowest_port} to {PORT_MAX}")
    return Address(host=host, port=number)


def parse_weights_url(field: str, value: object) -> str:
    """`value` if it can be where a site serves its weights to others. FieldError when it cannot."""
    found = _URL.match(value) if isinstance(value, str) and len(value) <= _URL_CHARS else None
    if found is None or ".." in found["path"].split("/"):
        raise FieldError(field, value, WEIGHTS_URL_RULE)
    try:
        parse_address(field, found["address"])
    except FieldError:
        raise FieldError(field, value, WEIGHTS_URL_RULE) from None
    return found[0].rstrip("/")
