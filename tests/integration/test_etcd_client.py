"""The client against a real member of etcd, which is killed, frozen and compacted under it."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing

import pytest

from atoll.model.address import Address
from orchestrator.store.etcd.client import EtcdClient
from orchestrator.store.etcd.errors import EtcdCompactedError, EtcdLeaseGoneError, EtcdRejectedError, EtcdUnavailableError
from orchestrator.store.etcd.operations import (
    OPERATIONS_MAX,
    REQUEST_BYTES_MAX,
    Change,
    Delete,
    Put,
    Unchanged,
    bytes_of,
    end_of,
    in_requests,
)
from orchestrator.store.etcd.target import EtcdTarget
from orchestrator.store.etcd.watch import Changes, Listing, follow
from tests.integration.etcd_members import PATIENCE_S, Member, member, needs_etcd, running

pytestmark = needs_etcd

_prefixes = (b"t%d/" % number for number in itertools.count())


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[], int]) -> Iterator[Member]:
    with running(member(tmp_path_factory.mktemp("etcd"), free_ports)) as one:
        yield one


@pytest.fixture
async def client(etcd: Member) -> AsyncIterator[EtcdClient]:
    client = await EtcdClient.open(EtcdTarget(members=(etcd.address,)), patience_s=PATIENCE_S)
    yield client
    await client.close()


@pytest.fixture
def prefix() -> bytes:
    """Keys of this test alone."""
    return next(_prefixes)


async def put(client: EtcdClient, *changes: Change) -> int:
    """Unguarded; the revision."""
    return (await client.transact([], changes)).header.revision


async def test_pages_hold_every_key_once_in_order(client: EtcdClient, prefix: bytes) -> None:
    keys = [prefix + b"%03d" % number for number in range(25)]
    await put(client, *(Put(key, b"v" + key) for key in keys))
    for limit in (1, 7, 25, 100):
        pages = [page async for page in client.pages(prefix, end_of(prefix), limit=limit)]
        assert [kv.key for page in pages for kv in page] == keys
        assert max(map(len, pages)) <= limit
    assert [kv.value async for page in client.pages(prefix, end_of(prefix), limit=9) for kv in page] == [b"v" + key for key in keys]
    assert [page async for page in client.pages(b"none/", end_of(b"none/"), limit=9)] == [[]]


async def test_a_guard_that_does_not_hold_changes_nothing_and_reads_instead(client: EtcdClient, prefix: bytes) -> None:
    key, other = prefix + b"k", prefix + b"other"
    first = await client.transact([Unchanged(key, 0)], [Put(key, b"1")])
    assert first.succeeded
    for stale in (0, first.header.revision - 1, first.header.revision + 1):
        refused = await client.transact([Unchanged(key, stale)], [Put(key, b"2"), Put(other, b"2")], otherwise=[key])
        assert not refused.succeeded
        assert [kv.value for one in refused.responses for kv in one.response_range.kvs] == [b"1"]
    assert await client.read([other]) == {}
    assert (await client.transact([Unchanged(key, first.header.revision), Unchanged(other, 0)], [Delete(key), Put(other, b"3")])).succeeded
    assert {key: kv.value for key, kv in (await client.read([key, other])).items()} == {other: b"3"}


async def test_of_many_who_take_turns_by_comparison_none_overtakes_another(client: EtcdClient, prefix: bytes) -> None:
    key = prefix + b"counter"

    async def add(times: int) -> None:
        while times:
            kv = (await client.read([key])).get(key)
            value, revision = (int(kv.value), kv.mod_revision) if kv else (0, 0)
            times -= (await client.transact([Unchanged(key, revision)], [Put(key, b"%d" % (value + 1))])).succeeded

    await asyncio.gather(*(add(10) for _ in range(4)))
    assert (await client.read([key]))[key].value == b"40"


async def test_requests_are_as_large_as_etcd_takes_and_keep_the_order(client: EtcdClient, prefix: bytes) -> None:
    """Also for the longest keys, which weigh more than their number."""
    changes: list[Change] = [Put(prefix + b"%05d" % number, b"v" * (number * 37 % 20_000)) for number in range(700)]
    changes += [Put(prefix + b"big", b"v" * (REQUEST_BYTES_MAX + 200_000)), Delete(prefix + b"00000")]
    changes += [Delete(prefix + b"x" * 9_000 + b"%d" % number) for number in range(130)]
    requests = list(in_requests(changes))
    assert [change for request in requests for change in request] == changes
    assert all(len(request) <= OPERATIONS_MAX for request in requests)
    assert all(len(request) == 1 or sum(map(bytes_of, request)) <= REQUEST_BYTES_MAX for request in requests)
    for request in requests:
        await put(client, *request)
    count = sum([len(page) async for page in client.pages(prefix, end_of(prefix), limit=50)])
    assert count == 700, "699 small ones and the big one"


async def test_what_etcd_will_never_take_is_told_at_once(client: EtcdClient, prefix: bytes) -> None:
    with pytest.raises(EtcdRejectedError, match="too many operations"):
        await put(client, *(Put(prefix + b"%d" % number, b"") for number in range(OPERATIONS_MAX + 1)))
    with pytest.raises(EtcdRejectedError, match="too large"):
        await put(client, Put(prefix, b"v" * 2_000_000))


async def test_history_that_was_compacted_is_told_and_compacting_again_is_nothing(client: EtcdClient, prefix: bytes) -> None:
    revision = await put(client, Put(prefix, b"1"))
    await put(client, Put(prefix, b"2"))
    assert (await client.range(prefix, revision=revision)).kvs[0].value == b"1"
    await client.compact(revision + 1)
    await client.compact(revision + 1)
    with pytest.raises(EtcdCompactedError):
        await client.range(prefix, revision=revision)
    assert (await client.range(prefix)).kvs[0].value == b"2"


async def test_a_lease_that_is_revoked_takes_its_keys_along(client: EtcdClient, prefix: bytes) -> None:
    lease = await client.grant(60)
    await put(client, Put(prefix + b"leased", b"v", lease), Put(prefix + b"kept", b"v"))
    await client.revoke(lease)
    assert list(await client.read([prefix + b"leased", prefix + b"kept"])) == [prefix + b"kept"]
    with pytest.raises(EtcdLeaseGoneError):
        await client.revoke(lease)


async def test_nobody_there_is_told_once_patience_is_over(free_port: int) -> None:
    client = await EtcdClient.open(EtcdTarget(members=(Address(host="127.0.0.1", port=free_port),)), patience_s=0.3)
    with pytest.raises(EtcdUnavailableError, match=str(free_port)):
        await client.range(b"k")
    await client.close()


async def test_a_name_that_nobody_knows_is_told_with_the_member() -> None:
    with pytest.raises(EtcdUnavailableError, match=r"nowhere\.invalid:2379"):
        await EtcdClient.open(EtcdTarget(members=(Address(host="nowhere.invalid", port=2379),)))


async def values_until(client: EtcdClient, prefix: bytes, last: bytes, listening: asyncio.Event, quiet_s: float = 0.3) -> list[bytes]:
    """What a follower of the prefix is told, up to a value: of listings only what is new. `listening` is set by the first of them."""
    told: list[bytes] = []
    async with asyncio.timeout(PATIENCE_S), aclosing(follow(client, prefix, end_of(prefix), quiet_s=quiet_s)) as updates:
        async for update in updates:
            match update:
                case Listing(kvs=kvs):
                    listening.set()
                    told.extend(kv.value for kv in kvs if kv.value not in told)
                case Changes(events=events):
                    told.extend(event.kv.value for event in events)
            if last in told:
                break
    return told


async def written(client: EtcdClient, key: bytes, values: range) -> None:
    for value in values:
        await put(client, Put(key, b"%d" % value))


async def test_a_follower_hears_of_every_change_once_and_in_order_over_kills_and_freezes(
    etcd: Member, client: EtcdClient, prefix: bytes
) -> None:
    key = prefix + b"k"
    await written(client, key, range(1))
    listening = asyncio.Event()
    following = asyncio.create_task(values_until(client, prefix, b"39", listening))
    await asyncio.wait_for(listening.wait(), PATIENCE_S)
    await written(client, key, range(1, 10))
    etcd.end()
    writing = asyncio.create_task(written(client, key, range(10, 20)))
    await asyncio.sleep(0)
    etcd.start()
    await writing
    etcd.send(signal.SIGSTOP)
    writing = asyncio.create_task(written(client, key, range(20, 40)))
    # Longer than the follower takes to give the silent stream up.
    await asyncio.sleep(0.8)
    etcd.send(signal.SIGCONT)
    await writing
    told = await following
    assert [int(value) for value in dict.fromkeys(told)] == list(range(40))
    # A write whose answer was lost was made again: the same value twice in a row.
    assert told == sorted(told, key=int)


async def test_a_follower_that_fell_behind_compacted_history_is_given_a_new_listing(client: EtcdClient, prefix: bytes) -> None:
    key = prefix + b"k"
    await written(client, key, range(2))
    seen: list[str] = []
    async with asyncio.timeout(PATIENCE_S), aclosing(follow(client, prefix, end_of(prefix))) as updates:
        async for update in updates:
            match update:
                case Listing(kvs=kvs):
                    seen.append("listed " + " ".join(kv.value.decode() for kv in kvs))
                case Changes(events=events):
                    seen.extend(event.kv.value.decode() for event in events)
            if len(seen) == 1:
                # Before it has opened its stream.
                await written(client, key, range(2, 7))
                await client.compact((await client.range(key)).header.revision)
            elif seen[-1] == "9":
                break
            else:
                await written(client, key, range(9, 10))
    assert seen == ["listed 1", "listed 6", "9"]


async def test_deletions_are_changes_too(client: EtcdClient, prefix: bytes) -> None:
    await put(client, Put(prefix + b"a", b"1"), Put(prefix + b"b", b"1"))
    async with asyncio.timeout(PATIENCE_S), aclosing(follow(client, prefix, end_of(prefix))) as updates:
        assert isinstance(await anext(updates), Listing)
        await put(client, Delete(prefix, end_of(prefix)))
        changes = await anext(updates)
    assert isinstance(changes, Changes)
    assert [(event.type, event.kv.key) for event in changes.events] == [(1, prefix + b"a"), (1, prefix + b"b")]
