"""The store in an etcd that is not all its own: others compact it, lead, write there, and say what this user may do."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import structlog.testing

from atoll.model.address import Address
from atoll.model.errors import StateError
from orchestrator.store.base import StoreError
from orchestrator.store.etcd import history, methods
from orchestrator.store.etcd.client import EtcdClient
from orchestrator.store.etcd.errors import EtcdCompactedError, EtcdDeniedError, EtcdUnavailableError
from orchestrator.store.etcd.layout import Layout
from orchestrator.store.etcd.operations import Put
from orchestrator.store.etcd.store import EtcdStore
from orchestrator.store.etcd.target import EtcdTarget
from orchestrator.store.etcd.watch import Changes, follow
from orchestrator.store.sqlite import SqliteStore
from tests.integration.etcd_behind import etcd_behind
from tests.integration.etcd_members import PATIENCE_S, Member, member, needs_etcd, running
from tests.integration.running_orchestrator import until
from tests.integration.store_backends import EtcdBackend, put, queued

pytestmark = needs_etcd


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[], int]) -> Iterator[Member]:
    with running(member(tmp_path_factory.mktemp("etcd"), free_ports)) as one:
        yield one


@pytest.fixture
def backend(etcd: Member) -> EtcdBackend:
    return EtcdBackend.new(etcd.address)


@pytest.fixture
async def client(etcd: Member) -> AsyncIterator[EtcdClient]:
    client = await EtcdClient.open(EtcdTarget(members=(etcd.address,)), patience_s=PATIENCE_S)
    yield client
    await client.close()


async def test_the_beats_of_a_fleet_that_does_nothing_are_compacted_too(
    backend: EtcdBackend, client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "HISTORY_S_MAX", 0.0)
    health = Layout(backend.target.prefix).health
    store = backend.open()
    await store.take_over()

    async def look_back_for_ever(revision: int) -> None:
        while True:
            await client.range(health, revision=revision)

    async with asyncio.timeout(PATIENCE_S), aclosing(follow(client, health)) as beats:
        await anext(beats)
        old = await anext(beats)
        assert isinstance(old, Changes)
        await anext(beats)
        await anext(beats)
        await store.sweep(now_us=1, retention_ms=1_000, max_ended=10)
        with pytest.raises(EtcdCompactedError):
            await look_back_for_ever(old.events[0].kv.mod_revision)
    await store.close()


async def test_whoever_is_taken_over_while_it_loads_does_not_begin(backend: EtcdBackend) -> None:
    """It may have read a part of what the other one has written, and would go on from that."""
    loading = threading.Event()

    def looked_at_the_clock() -> int:
        if not loading.is_set():
            loading.set()
            other = threading.Thread(target=lambda: asyncio.run(backend.depose()))
            other.start()
            other.join(PATIENCE_S)
        return 0

    store = EtcdStore(backend.target, wall_ms=looked_at_the_clock)
    with pytest.raises(StoreError, match="another took over while this one was loading"):
        await store.take_over()
    assert loading.is_set()
    await asyncio.wait_for(store.deposed(), PATIENCE_S)
    await store.close()


@pytest.mark.parametrize(
    ("key", "value"),
    [(b"live/j", b"short"), (b"live/j", b"long enough for a number"), (b"ended/notes", b"\x90"), (b"audit/notes", b""), (b"site/s", b"{}")],
)
async def test_what_cannot_be_read_is_named(backend: EtcdBackend, client: EtcdClient, key: bytes, value: bytes) -> None:
    layout = Layout(backend.target.prefix)
    first = backend.open()
    await first.take_over()
    await first.close()
    await client.transact([], [Put(layout.root + key, value)])
    store = backend.open()
    with pytest.raises(StateError, match=f"etcd key {backend.target.prefix}/{key.decode()} holds what this program does not write"):
        await store.take_over()
    await store.close()


async def test_what_waits_for_a_connection_that_is_given_up_hears_of_it() -> None:
    """Not that it was cancelled: its caller was not."""
    with socket.create_server(("127.0.0.1", 0)) as says_nothing:
        address = Address(host="127.0.0.1", port=says_nothing.getsockname()[1])
        client = await EtcdClient.open(EtcdTarget(members=(address,)), patience_s=PATIENCE_S)
        waiting = asyncio.create_task(client.range(b"k"))
        await asyncio.sleep(0)  # in which it asks
        assert not waiting.done()
        await client.close()
        with pytest.raises(EtcdUnavailableError, match="was given up"):
            await waiting
        with pytest.raises(EtcdUnavailableError, match="was given up"):
            await client.range(b"k")


async def test_what_etcd_keeps_for_its_root_is_missed_and_said_and_nothing_else_stops(
    etcd: Member, backend: EtcdBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of 3.5.28 and 3.6.9 a user of a prefix may not compact, and for some versions not even ask how full etcd is."""
    monkeypatch.setattr(history, "HISTORY_S_MAX", 0.0)
    async with etcd_behind(etcd.address) as (behind, address):
        behind.denied = frozenset({methods.COMPACT.path, methods.STATUS.path})
        with structlog.testing.capture_logs() as logs:
            store = EtcdStore(replace(backend.target, members=(address,)))
            term = (await store.take_over()).term
            await put(store, term, queued("j1"))
            await until(lambda: {"history_not_compacted", "fullness_unknown"} <= {line["event"] for line in logs})
            await put(store, term, queued("j2"))
            assert store.why_shed() == ""
            await store.close()
    advice = {line["event"]: line["advice"] for line in logs}
    assert "--auto-compaction-mode=periodic" in advice["history_not_compacted"]
    assert "new jobs are accepted until nothing is" in advice["fullness_unknown"]
    assert len([line for line in logs if line["event"] == "fullness_unknown"]) == 1


async def test_who_may_not_watch_is_told_and_does_not_ask_for_ever(etcd: Member) -> None:
    async with etcd_behind(etcd.address) as (behind, address), asyncio.timeout(PATIENCE_S):
        behind.denied = frozenset({methods.WATCH.path})
        client = await EtcdClient.open(EtcdTarget(members=(address,)), patience_s=PATIENCE_S)
        async with aclosing(follow(client, b"k")) as updates:
            await anext(updates)
            with pytest.raises(EtcdDeniedError):
                await anext(updates)
        await client.close()


async def test_a_copy_that_another_fleet_compacts_away_is_begun_anew(
    etcd: Member, backend: EtcdBackend, client: EtcdClient, tmp_path: Path
) -> None:
    compacted = 0

    async def compact_as_others_do(path: str) -> None:
        nonlocal compacted
        if compacted < 2 and path == methods.RANGE.path:
            compacted += 1
            newest = (await client.transact([], [Put(b"others/key", b"v")])).header.revision
            await client.compact(newest)

    async with etcd_behind(etcd.address) as (behind, address):
        store = EtcdStore(replace(backend.target, members=(address,)))
        await put(store, (await store.take_over()).term, queued("j1"))
        behind.before = compact_as_others_do
        await store.backup(str(tmp_path / "copy.db"))
        await store.close()
    assert compacted == 2
    copy = SqliteStore(tmp_path / "copy.db")
    assert [job.job_id for job in (await copy.take_over()).jobs] == ["j1"]
    await copy.close()


@pytest.mark.parametrize("names", [("", "/live"), ("/live", ""), ("", "/a/b")])
async def test_a_fleet_within_anothers_prefix_is_not_begun(backend: EtcdBackend, names: tuple[str, str]) -> None:
    """Its jobs would be the other's."""
    first, second = (EtcdStore(replace(backend.target, prefix=f"{backend.target.prefix}{name}")) for name in names)
    term = (await first.take_over()).term
    with pytest.raises(StateError, match="give each fleet a prefix of its own, beside the others"):
        await second.take_over()
    await second.close()
    await put(first, term, queued("j1"))
    beside = EtcdStore(replace(backend.target, prefix=f"{backend.target.prefix}{names[0]}2"))
    assert (await beside.take_over()).jobs == ()
    await beside.close()
    await first.close()
