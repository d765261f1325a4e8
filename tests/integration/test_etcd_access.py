"""TLS and users of a real etcd, and the words in which it is said what is missing."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

import grpc.aio
import pytest

from atoll.model.address import Address
from atoll.model.errors import FieldError
from orchestrator.core.outputs import PutJob
from orchestrator.store.base import CommitOutcome
from orchestrator.store.etcd.client import EtcdClient
from orchestrator.store.etcd.errors import (
    EtcdDeniedError,
    EtcdError,
    EtcdFullError,
    EtcdRejectedError,
    EtcdTokenError,
    EtcdUnavailableError,
    passes,
    told,
)
from orchestrator.store.etcd.layout import HealthValue, Layout, decode
from orchestrator.store.etcd.local import find_program
from orchestrator.store.etcd.operations import Put
from orchestrator.store.etcd.store import EtcdStore
from orchestrator.store.etcd.target import EtcdTarget, Tls, parse_url
from orchestrator.store.etcd.watch import Changes, Listing, follow
from tests.integration.etcd_members import PATIENCE_S, Member, member, needs_etcd, running
from tests.integration.running_orchestrator import until
from tests.integration.store_backends import queued

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def make_certificates(folder: Path) -> None:
    """An authority, and one certificate for members and clients alike, of 127.0.0.1 and a name that all members share."""
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(folder, "req", "-x509", *new_key, "-days", "2", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem")
    names = "subjectAltName=IP:127.0.0.1,DNS:etcd.internal"
    openssl(folder, "req", *new_key, "-subj", "/CN=atoll", "-addext", names, "-keyout", "one.key", "-out", "one.csr")
    sign = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-copy_extensions", "copy")
    openssl(folder, "x509", "-req", "-in", "one.csr", *sign, "-out", "one.pem")


@dataclass(frozen=True, slots=True)
class Guarded:
    """A member that speaks TLS only, asks for certificates, and has users: `atoll` may use `mine/`."""

    member: Member
    tls: Tls
    folder: Path

    def target(self, **changes: object) -> EtcdTarget:
        whole = EtcdTarget(members=(self.member.address,), tls=self.tls, user="atoll", password="secret")
        return replace(whole, **changes)  # type: ignore[arg-type] # fields by name

    def control(self, *arguments: str, user: str = "root:root", typed: str = "") -> None:
        """As an administrator does."""
        files = [f"--{flag}={self.folder / name}" for flag, name in (("cacert", "ca.pem"), ("cert", "one.pem"), ("key", "one.key"))]
        where = f"--endpoints=https://{self.member.address}"
        command = [str(find_program("etcdctl")), where, *files, *([f"--user={user}"] if user else []), *arguments]
        subprocess.run(command, check=True, capture_output=True, input=typed.encode())


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[], int]) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    make_certificates(folder)
    files = ("--cert-file", str(folder / "one.pem"), "--key-file", str(folder / "one.key"), "--trusted-ca-file", str(folder / "ca.pem"))
    one = member(folder / "data", free_ports, *files, "--client-cert-auth")
    one.command = [text.replace(f"http://{one.address}", f"https://{one.address}") for text in one.command]
    tls = Tls(ca=(folder / "ca.pem").read_bytes(), cert=(folder / "one.pem").read_bytes(), key=(folder / "one.key").read_bytes())
    guarded = Guarded(one, tls, folder)
    with running(one, tls=tls):
        for words in (
            ("user", "add", "root:root"),
            ("user", "grant-role", "root", "root"),
            ("user", "add", "atoll:secret"),
            ("role", "add", "fleet"),
            ("role", "grant-permission", "fleet", "--prefix=true", "readwrite", "mine/"),
            ("user", "grant-role", "atoll", "fleet"),
            ("auth", "enable"),
        ):
            guarded.control(*words, user="")
        yield guarded


@needs_etcd
@needs_openssl
async def test_a_user_over_tls_may_do_all_that_a_store_does_below_its_prefix(etcd: Guarded) -> None:
    client = await EtcdClient.open(etcd.target(), patience_s=PATIENCE_S)
    lease = await client.grant(60)
    revision = (await client.transact([], [Put(b"mine/k", b"v"), Put(b"mine/leased", b"v", lease)])).header.revision
    assert [kv.value for kv in (await client.range(b"mine/", b"mine0")).kvs] == [b"v", b"v"]
    assert (await client.status()).dbSize > 0
    await client.compact(revision)
    first = await anext(follow(client, b"mine/k"))
    assert isinstance(first, Listing)
    assert first.revision >= revision
    await client.revoke(lease)
    with pytest.raises(EtcdDeniedError, match="grant its role readwrite on the whole prefix"):
        await client.range(b"other/")
    await client.close()


@needs_etcd
@needs_openssl
async def test_a_store_and_its_signs_of_life_over_tls_survive_void_tokens(etcd: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    # The shortest that etcd grants: without being kept it would run out while this test waits.
    monkeypatch.setattr("orchestrator.store.etcd.pulse.LEASE_TTL_S", 2)
    target = etcd.target(prefix="mine/fleet")
    layout = Layout(target.prefix)
    # A quota so small that it is used up: members are asked for their size by threads of the store's own.
    store = EtcdStore(target, quota_bytes=1_000)
    client = await EtcdClient.open(target, patience_s=PATIENCE_S)
    term = (await store.take_over()).term
    assert await store.commit(term, 1, [PutJob(job=queued("j1"))]) is CommitOutcome.COMMITTED
    await until(lambda: "% full" in store.why_shed())

    async def beat() -> tuple[int, int]:
        """The number of the last one, and the lease that it is of."""
        health = (await client.read([layout.health])).get(layout.health)
        return (decode(HealthValue, health).beat, health.lease) if health is not None else (0, 0)

    async def lease_at(number: int) -> int:
        async with asyncio.timeout(PATIENCE_S):
            while (last := await beat())[0] < number:  # noqa: ASYNC110 - what is waited for is another process's state
                await asyncio.sleep(0.05)
        return last[1]

    lease = await lease_at(1)
    etcd.control("role", "add", "yet-another")
    assert await lease_at(25) == lease != 0, "five seconds later it is the same one"
    assert await store.commit(term, 2, [PutJob(job=queued("j2"))]) is CommitOutcome.COMMITTED
    await store.close()
    assert await beat() == (0, 0), "it said goodbye"
    await client.close()


@needs_etcd
@needs_openssl
async def test_a_token_that_is_void_is_replaced_without_anybody_noticing(etcd: Guarded) -> None:
    client = await EtcdClient.open(etcd.target(), patience_s=PATIENCE_S)
    await client.transact([], [Put(b"mine/token", b"1")])
    # Every change of users or roles voids tokens, and so does their age.
    etcd.control("user", "passwd", "--interactive=false", "atoll", typed="secret")
    etcd.control("role", "add", "another")
    await client.transact([], [Put(b"mine/token", b"2")])
    assert (await client.range(b"mine/token")).kvs[0].value == b"2"
    await client.close()


@needs_etcd
@needs_openssl
async def test_a_follower_outlives_its_token(etcd: Guarded) -> None:
    """Its stream breaks, and the follower is the first to show a token that is void."""
    client = await EtcdClient.open(etcd.target(), patience_s=PATIENCE_S)
    another = await EtcdClient.open(etcd.target(), patience_s=PATIENCE_S)
    async with asyncio.timeout(PATIENCE_S), aclosing(follow(client, b"mine/followed")) as updates:
        assert isinstance(await anext(updates), Listing)
        for value in ("1", "2"):
            told = asyncio.ensure_future(anext(updates))
            etcd.control("user", "passwd", "--interactive=false", "atoll", typed="secret")
            await asyncio.to_thread(etcd.member.end)
            etcd.member.start()
            await another.transact([], [Put(b"mine/followed", value.encode())])
            changes = await told
            assert isinstance(changes, Changes)
            assert [event.kv.value for event in changes.events] == [value.encode()]
    await client.close()
    await another.close()


@needs_etcd
@needs_openssl
async def test_a_wrong_password_is_told_as_that(etcd: Guarded) -> None:
    client = await EtcdClient.open(etcd.target(password="guessed"), patience_s=PATIENCE_S)
    with pytest.raises(EtcdDeniedError, match="does not know this user with this password"):
        await client.range(b"mine/k")
    await client.close()


@needs_etcd
@needs_openssl
async def test_without_a_user_the_name_in_the_certificate_is_one(etcd: Guarded) -> None:
    client = await EtcdClient.open(etcd.target(user="", password=""), patience_s=PATIENCE_S)
    assert (await client.range(b"mine/none")).count == 0
    await client.close()


@pytest.mark.parametrize(
    ("code", "details", "told_as", "words"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: user name is empty", EtcdDeniedError, "give --store-user"),
        (grpc.StatusCode.FAILED_PRECONDITION, "etcdserver: authentication is not enabled", EtcdDeniedError, "leave the user out"),
        (grpc.StatusCode.UNAUTHENTICATED, "etcdserver: invalid auth token", EtcdTokenError, "does not accept the token"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", EtcdFullError, "alarm disarm"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests", EtcdUnavailableError, "does not answer"),
        (grpc.StatusCode.UNAVAILABLE, "etcdserver: leader changed", EtcdUnavailableError, "leader changed"),
        (grpc.StatusCode.UNIMPLEMENTED, "unknown service", EtcdRejectedError, "UNIMPLEMENTED"),
    ],
)
def test_refusals_are_told_in_words_for_an_operator(code: grpc.StatusCode, details: str, told_as: type[EtcdError], words: str) -> None:
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details, None)
    refusal = told(error)
    assert type(refusal) is told_as
    assert words in str(refusal)
    assert passes(error) is (told_as is EtcdUnavailableError)


@needs_etcd
@needs_openssl
async def test_members_are_checked_against_the_name_that_they_share(etcd: Guarded) -> None:
    shared = await EtcdClient.open(etcd.target(tls=replace(etcd.tls, name="etcd.internal")), patience_s=PATIENCE_S)
    assert (await shared.range(b"mine/none")).count == 0
    await shared.close()
    for tls in (replace(etcd.tls, name="elsewhere"), replace(etcd.tls, ca=None), replace(etcd.tls, cert=None, key=None), None):
        stranger = await EtcdClient.open(etcd.target(tls=tls), patience_s=0.5)
        with pytest.raises(EtcdUnavailableError, match="does not answer"):
            await stranger.range(b"mine/none")
        await stranger.close()


@pytest.mark.parametrize(
    ("url", "members", "prefix"),
    [
        ("etcd://10.0.0.1", ("10.0.0.1:2379",), "atoll"),
        ("etcd://10.0.0.1:23790/", ("10.0.0.1:23790",), "atoll"),
        (
            "etcd://a.example:1,b.example,[::1]:3,[::2]/fleets/eu-1",
            ("a.example:1", "b.example:2379", "[::1]:3", "[::2]:2379"),
            "fleets/eu-1",
        ),
    ],
)
def test_a_url_names_members_and_a_prefix(url: str, members: tuple[str, ...], prefix: str) -> None:
    target = parse_url("store", url)
    assert (tuple(map(str, target.members)), target.prefix) == (members, prefix)
    assert parse_url("store", str(target)) == target


@pytest.mark.parametrize(
    "url",
    [
        "", "etcd://", "etcd:///atoll", "http://a:1", "etcd://a:1,", "etcd://a:1,a:1", "etcd://a:0", "etcd://a:1/x y", "etcd://a:1/../x",
        "etcd://a:1/x//y", "etcd://root:pw@a:1", "etcd://a:1?x=y", "etcd://" + ",".join(f"m{number}" for number in range(10)),
    ],
)  # fmt: skip
def test_what_is_no_url_is_refused_with_the_setting_and_an_example(url: str) -> None:
    with pytest.raises(FieldError, match=r"store is .*: expected"):
        parse_url("store", url)


def test_a_password_in_a_url_is_refused_and_not_shown_by_a_target() -> None:
    with pytest.raises(FieldError, match="--store-user") as refused:
        parse_url("store", "etcd://root:secret@a:1")
    assert "secret" not in str(refused.value)
    assert "secret" not in repr(EtcdTarget(members=(Address(host="a"),), password="secret", tls=Tls(key=b"secret")))
