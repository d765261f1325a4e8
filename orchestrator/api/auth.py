"""Who calls: bearer tokens of clients and operators, hashed; and what each role may call.

Decides whether a caller is known and whether a role may use a method. Credentials of agents belong to sites and are compared in
`orchestrator.sessions`. Tokens are stored as sha256 only and compared in constant time.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Final

import yaml

from atoll.model.errors import FieldError, SourceError, quoted
from atoll.model.ids import TenantId, parse_name
from orchestrator.api.status import ForbiddenError, UnauthenticatedError

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
# 16 random characters are 80 bits or more: out of reach for guessing even without a limit on tries.
TOKEN_CHARS_MIN: Final = 16
TOKEN_CHARS_MAX: Final = 512
TOKENS_MAX: Final = 10_000


class Role(StrEnum):
    """What a credential is for."""

    CLIENT = "client"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A credential as it is stored. `sha256` is of the token's UTF-8."""

    name: str
    tenant: TenantId
    roles: frozenset[Role]
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls. `name` is what the audit says."""

    name: str
    tenant: TenantId
    roles: frozenset[Role]

    @property
    def operator(self) -> bool:
        """Whether every tenant's jobs and all sites are theirs to see."""
        return Role.OPERATOR in self.roles


# Where no credential is configured only this machine can call, and whoever can is trusted.
LOCAL: Final = Caller(name="local", tenant=TenantId("default"), roles=frozenset(Role))
# An agent before its hello; its credential is checked against its site's.
AGENT: Final = Caller(name="agent", tenant=TenantId("default"), roles=frozenset())

CALLER: ContextVar[Caller] = ContextVar("caller")
REQUEST_ID: ContextVar[str] = ContextVar("request_id")

# What a service's methods need; None: nothing (health, reflection), or checked by the service itself (sites).
_ROLES: Final[Mapping[str, Role | None]] = {
    "atoll.v1.JobService": Role.CLIENT,
    "atoll.v1.OperatorService": Role.OPERATOR,
    "atoll.v1.SiteService": None,
    "grpc.health.v1.Health": None,
    "grpc.reflection.v1alpha.ServerReflection": None,
}


class Authenticator:
    """Knows the tokens."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        self._by_digest = {token.sha256: token for token in tokens}

    @property
    def required(self) -> bool:
        """Whether callers need a credential at all."""
        return bool(self._by_digest)

    def caller(self, authorization: str | None) -> Caller:
        """Who sent this `authorization` metadata. Raises UnauthenticatedError."""
        if not self.required:
            return LOCAL
        secret = bearer(authorization)
        if not secret:
            raise UnauthenticatedError("a credential is needed: send the metadata 'authorization: Bearer TOKEN'")
        digest = _digest(secret)
        token = self._by_digest.get(digest)
        # The dictionary's comparison is of digests: its timing tells nothing of a token. This one is for whoever reads.
        if token is None or not hmac.compare_digest(token.sha256, digest):
            raise UnauthenticatedError("the credential is not known here")
        return Caller(name=token.name, tenant=token.tenant, roles=token.roles)

    def knows(self, secret: str) -> bool:
        """Whether this is a client's or an operator's token."""
        return _digest(secret) in self._by_digest

    def allow(self, method: str, authorization: str | None) -> Caller:
        """The caller, if they may use this method ("/package.Service/Method"). Raises UnauthenticatedError or ForbiddenError."""
        service = method.split("/")[1]
        role = _ROLES.get(service, Role.OPERATOR)
        if role is None:
            return AGENT
        caller = self.caller(authorization)
        if role not in caller.roles and not caller.operator:
            raise ForbiddenError(f"{caller.name} may not use {service}: its credential has no role {role}")
        return caller


def _digest(secret: str) -> str:
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def bearer(authorization: str | None) -> str:
    """The token of an `authorization` header; "" when there is none."""
    scheme, _, secret = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or len(secret) > TOKEN_CHARS_MAX:
        return ""
    return secret.strip()


def own_tenant(caller: Caller, field: str, tenant: str) -> TenantId:
    """The tenant a caller speaks for: their own, or any if they are an operator. Raises ForbiddenError."""
    if not tenant or tenant == caller.tenant:
        return caller.tenant
    if not caller.operator:
        raise ForbiddenError(f"{field} is {quoted(tenant)}: the credential of {caller.name} is of tenant {caller.tenant}")
    return TenantId(parse_name(field, tenant))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener on `host`."""
    if host in {"localhost", "localhost.localdomain"}:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def operator_token(secret: str) -> Token:
    """The token that stands alone in the environment: client and operator of tenant `default`. Raises FieldError when it is too short."""
    legal = secret.isascii() and secret.isprintable() and " " not in secret
    if not legal or not TOKEN_CHARS_MIN <= len(secret) <= TOKEN_CHARS_MAX:
        # The value itself is a secret and is not quoted.
        expected = f"{TOKEN_CHARS_MIN} to {TOKEN_CHARS_MAX} printable ASCII characters without spaces"
        raise FieldError("the orchestrator's token", f"({len(secret)} characters)", expected)
    return Token(name="operator", tenant=TenantId("default"), roles=frozenset(Role), sha256=_digest(secret))


def parse_tokens(file: str, text: str) -> tuple[Token, ...]:
    """Tokens of a YAML file: a list `tokens` of {name, tenant, roles, sha256}. Raises SourceError naming what is wrong."""
    try:
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise SourceError(file, line, "file", error.problem, "YAML") from None
    entries = content.get("tokens") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not 0 < len(entries) <= TOKENS_MAX:
        raise SourceError(file, 0, "tokens", entries, f"a list of 1 to {TOKENS_MAX} entries {{name, tenant, roles, sha256}}")
    tokens = [_token(file, f"tokens[{index}]", entry) for index, entry in enumerate(entries)]
    for field, values in (("name", [token.name for token in tokens]), ("sha256", [token.sha256 for token in tokens])):
        if len(set(values)) != len(values):
            double = next(value for value in values if values.count(value) > 1)
            raise SourceError(file, 0, f"tokens.{field}", double, f"each {field} once")
    return tuple(tokens)


def _token(file: str, field: str, entry: object) -> Token:
    if not isinstance(entry, dict) or set(entry) - {"name", "tenant", "roles", "sha256"}:
        raise SourceError(file, 0, field, entry, "an entry with name, tenant, roles and sha256")
    roles = entry.get("roles", [Role.CLIENT.value])
    digest = entry.get("sha256")
    try:
        name = parse_name(f"{field}.name", entry.get("name"))
        tenant = TenantId(parse_name(f"{field}.tenant", entry.get("tenant", "default")))
    except FieldError as error:
        raise SourceError(file, 0, error.field, error.value, error.expected) from None
    if not isinstance(roles, list) or not roles or any(role not in list(Role) for role in roles):
        raise SourceError(file, 0, f"{field}.roles", roles, f"a list of {' and '.join(Role)}")
    if not isinstance(digest, str) or not _SHA256.match(digest):
        raise SourceError(file, 0, f"{field}.sha256", "(not shown)", "64 lower-case hex digits: printf %s TOKEN | sha256sum")
    return Token(name=name, tenant=tenant, roles=frozenset(Role(role) for role in roles), sha256=digest)
