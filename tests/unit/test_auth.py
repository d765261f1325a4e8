"""Credentials: who is known, what a role may call, and that secrets are never shown."""

from __future__ import annotations

from hashlib import sha256

import pytest

from atoll.model.errors import FieldError, SourceError
from atoll.model.ids import TenantId
from atoll.model.site import SiteRecord
from orchestrator.api.auth import (
    AGENT,
    LOCAL,
    Authenticator,
    Caller,
    Role,
    bearer,
    is_loopback,
    operator_token,
    own_tenant,
    parse_tokens,
)
from orchestrator.api.status import ForbiddenError, UnauthenticatedError
from orchestrator.identity import digest_of, new_job_id, new_secret
from orchestrator.sessions import SessionTable
from tests.unit.fleet_of_machines import site

SECRET = "a-secret-of-many-characters"
DIGEST = sha256(SECRET.encode()).hexdigest()
SUBMIT, SITES, CONNECT = "/atoll.v1.JobService/Submit", "/atoll.v1.OperatorService/ListSites", "/atoll.v1.SiteService/Connect"


def test_without_tokens_whoever_can_call_is_local_and_trusted() -> None:
    open_to_all = Authenticator(())
    assert not open_to_all.required
    assert open_to_all.allow(SUBMIT, None) == open_to_all.allow(SITES, "Bearer anything") == LOCAL
    assert LOCAL.tenant == "default"


def test_a_token_opens_what_its_roles_allow() -> None:
    (client,) = parse_tokens("t.yaml", f"tokens: [{{name: ann, tenant: red, sha256: {DIGEST}}}]")
    authenticator = Authenticator((client,))
    caller = authenticator.allow(SUBMIT, f"bearer {SECRET}")
    assert caller == Caller(name="ann", tenant=TenantId("red"), roles=frozenset({Role.CLIENT}))
    with pytest.raises(ForbiddenError, match="ann may not use"):
        authenticator.allow(SITES, f"Bearer {SECRET}")
    for wrong in (None, "", "Bearer", f"Basic {SECRET}", f"Bearer {SECRET}x", f"Bearer {DIGEST}", "Bearer " + "x" * 10_000):
        with pytest.raises(UnauthenticatedError):
            authenticator.allow(SUBMIT, wrong)
    assert authenticator.allow(CONNECT, None) is AGENT
    with pytest.raises(ForbiddenError):
        authenticator.allow("/somebody.Else/Method", f"Bearer {SECRET}")


def test_an_operator_may_do_what_clients_may() -> None:
    authenticator = Authenticator((operator_token(SECRET),))
    assert authenticator.allow(SUBMIT, f"Bearer {SECRET}").operator
    assert authenticator.allow(SITES, f"Bearer {SECRET}").operator


def test_a_client_speaks_for_its_own_tenant_only() -> None:
    client = Caller(name="ann", tenant=TenantId("red"), roles=frozenset({Role.CLIENT}))
    assert own_tenant(client, "tenant", "") == own_tenant(client, "tenant", "red") == "red"
    with pytest.raises(ForbiddenError):
        own_tenant(client, "tenant", "blue")
    assert own_tenant(LOCAL, "tenant", "blue") == "blue"
    with pytest.raises(FieldError):
        own_tenant(LOCAL, "tenant", "b/l/u/e")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("tokens: [", "file"),
        ("", "tokens"),
        ("tokens: []", "tokens"),
        ("tokens: {}", "tokens"),
        (f"tokens: [{{name: A/B, sha256: {DIGEST}}}]", "tokens[0].name"),
        (f"tokens: [{{name: a, tenant: 7, sha256: {DIGEST}}}]", "tokens[0].tenant"),
        (f"tokens: [{{name: a, roles: [king], sha256: {DIGEST}}}]", "tokens[0].roles"),
        ("tokens: [{name: a, sha256: abc}]", "tokens[0].sha256"),
        (f"tokens: [{{name: a, token: {SECRET}}}]", "tokens[0]"),
        (f"tokens: [{{name: a, sha256: {DIGEST}}}, {{name: b, sha256: {DIGEST}}}]", "tokens.sha256"),
    ],
)
def test_token_files_that_cannot_be_are_refused_by_name(text: str, field: str) -> None:
    with pytest.raises(SourceError) as error:
        parse_tokens("t.yaml", text)
    assert error.value.field == field
    assert str(error.value).startswith("t.yaml:")


def test_short_or_odd_operator_tokens_are_refused_without_being_shown() -> None:
    for secret in ("short", "x" * 600, "sixteen letters and spaces", "sixteen-letters-\u00e4"):
        with pytest.raises(FieldError) as error:
            operator_token(secret)
        assert secret not in str(error.value)


def test_bearer_takes_the_token_out_of_the_header() -> None:
    assert bearer(f"BEARER  {SECRET} ") == SECRET
    assert bearer("Bearer") == bearer(None) == ""


def test_only_this_machine_is_loopback() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.1", "example.com", "127.0.0.1.example.com")))


def test_a_join_token_is_good_until_its_credential_arrived() -> None:
    sessions = SessionTable()
    join, credential = new_secret("atoll-join"), new_secret("atoll-site")
    record = SiteRecord(spec=site("a"), join_token_sha256=digest_of(join))
    assert sessions.admit(record, "something else") is None
    assert sessions.admit(record, join) is False
    joined = SiteRecord(spec=site("a"), credential_sha256=digest_of(credential))
    # The stream broke before the welcome came through: the agent may try again.
    assert sessions.admit(joined, join) is False
    assert sessions.admit(joined, credential) is True
    assert sessions.admit(joined, join) is None
    assert sessions.admit(SiteRecord(spec=site("a")), "") is None


def test_job_ids_are_legal_distinct_and_sort_by_time() -> None:
    ids = [new_job_id(now_us) for now_us in range(0, 10**9, 10**6)]
    assert ids == sorted(set(ids))
    assert all(len(one) == 28 and one.startswith("j-") for one in ids)
    assert len({new_job_id(5) for _ in range(1_000)}) == 1_000
