"""Which etcd is meant, and as whom it is spoken to: the URL of the store, and what TLS and authentication need.

Decides how a URL is written. Opens no file and resolves no name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from atoll.model.address import Address, parse_address
from atoll.model.errors import FieldError

SCHEME: Final = "etcd://"
DEFAULT_PORT: Final = 2379
# A cluster has 3 or 5; 7 is what etcd's authors call the most that makes sense.
MEMBERS_MAX: Final = 9
URL_RULE: Final = "etcd://HOST:PORT[,HOST:PORT...][/PREFIX], such as 'etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379/atoll'"
DEFAULT_PREFIX: Final = "atoll"
_PORT = re.compile(r":[0-9]+\Z")
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,62}){0,7}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """PEM texts. `ca` None: the authorities that the system trusts. `name` "": the certificates carry the first member's host name."""

    ca: bytes | None = None
    cert: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdTarget:
    """Members of one cluster, and the prefix below which all keys of one fleet are. `tls` None: in the clear. `user` "": none."""

    members: tuple[Address, ...]
    prefix: str = DEFAULT_PREFIX
    tls: Tls | None = None
    user: str = ""
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{SCHEME}{','.join(map(str, self.members))}/{self.prefix}"


def parse_url(name: str, value: str) -> EtcdTarget:
    """`value` as a target in the clear, of no user. FieldError naming the setting `name` when it is none."""
    if "@" in value:
        # A password in a URL ends in lists of processes and in logs: not in this one too.
        raise FieldError(name, f"etcd://...@{value.rpartition('@')[2]}", f"{URL_RULE}; users are given by --store-user")
    if not value.startswith(SCHEME):
        raise FieldError(name, value, URL_RULE)
    hosts, _, prefix = value.removeprefix(SCHEME).partition("/")
    prefix = prefix.strip("/") or DEFAULT_PREFIX
    if not _PREFIX.match(prefix):
        raise FieldError(name, value, f"{URL_RULE}; a prefix is up to 8 names of letters, digits, '.', '_' and '-', with '/' between")
    members = tuple(_member(name, value, host) for host in hosts.split(","))
    if len(members) > MEMBERS_MAX or len(set(members)) < len(members):
        raise FieldError(name, value, f"at most {MEMBERS_MAX} members, each once")
    return EtcdTarget(members=members, prefix=prefix)


def _member(name: str, value: str, host: str) -> Address:
    try:
        return parse_address(name, host if _PORT.search(host) else f"{host}:{DEFAULT_PORT}")
    except FieldError:
        raise FieldError(name, value, URL_RULE) from None
