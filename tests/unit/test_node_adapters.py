"""What a real site's runtime tells of adapters: each command is answered, however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from agents.adapter_files import AdapterFiles
from agents.core.events import AdapterDeleted, AdapterFetched, AdapterFetchFailed, AgentEvent, ReplicaAdaptFailed
from agents.core.outputs import AdaptReplica, FetchAdapter
from agents.engine.request import AdapterFile
from agents.runtime.node_adapters import NodeAdapters
from atoll.model.attempt import Failure, FailureKind
from atoll.model.ids import AdapterId, ModelId, NodeId, PoolId, SlotRef
from tests.unit.test_adapter_files import CACHE_BYTES, served

NODES = (NodeId("cpu-0"), NodeId("gpu-0"))
SLOT = SlotRef(pool_id=PoolId("cpu"), node_id=NODES[0], index=0)


class Host:
    """The adapters of a host with two nodes, and what was told of them."""

    def __init__(self, folder: Path) -> None:
        self.origin = folder / "origin"
        self.files = AdapterFiles(folder / "cache", cache_bytes=CACHE_BYTES)
        self.told: list[AgentEvent] = []
        self.adapters = NodeAdapters(self.files, nodes=NODES, tell=self.told.append)
        self.calls: list[tuple[object, ...]] = []

    async def fetch(self, name: str, *, node: NodeId = NODES[0], size: int = 1_000) -> list[AgentEvent]:
        self.told.clear()
        await self.adapters.fetch(FetchAdapter(node_id=node, adapter=served(self.origin, name, size)), self.origin.as_uri())
        return list(self.told)

    async def call(self, *arguments: object) -> None:
        self.calls.append(arguments)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    host = Host(tmp_path)
    yield host
    await host.adapters.close()


async def test_a_fetch_is_told_by_the_node_that_asked_and_found_on_all_that_share_the_disk(host: Host) -> None:
    (fetched,) = await host.fetch("ink")
    assert isinstance(fetched, AdapterFetched)
    assert (fetched.node_id, fetched.adapter_id, fetched.bytes > 1_000) == (NODES[0], "ink", True)
    assert await host.adapters.on_disk() == tuple((node, "ink", fetched.weights_digest) for node in NODES)
    (again,) = await host.fetch("ink", node=NODES[1])
    assert isinstance(again, AdapterFetched) and (again.node_id, again.bytes) == (NODES[1], 0)


async def test_two_nodes_that_ask_at_once_share_a_fetch_and_each_is_told(host: Host) -> None:
    adapter = served(host.origin, "ink", 5_000)
    await asyncio.gather(*(host.adapters.fetch(FetchAdapter(node_id=node, adapter=adapter), host.origin.as_uri()) for node in NODES))
    assert sorted(event.node_id for event in host.told if isinstance(event, AdapterFetched)) == sorted(NODES)


async def test_every_failure_is_told_with_its_kind(host: Host) -> None:
    good = served(host.origin, "ink")
    for adapter, origin, kind in (
        (good, None, FailureKind.FETCH_FAILED),
        (good, (host.origin / "elsewhere").as_uri(), FailureKind.FETCH_FAILED),
        (good, "nonsense://x", FailureKind.FETCH_FAILED),
        (replace(good, weights_digest="sha256:" + "0" * 64), host.origin.as_uri(), FailureKind.BAD_WEIGHTS),
        (replace(good, adapter_id=AdapterId("../x")), host.origin.as_uri(), FailureKind.BAD_WEIGHTS),
        (served(host.origin, "huge", 20_000), host.origin.as_uri(), FailureKind.DISK_FULL),
    ):
        host.told.clear()
        await host.adapters.fetch(FetchAdapter(node_id=NODES[0], adapter=adapter), origin)
        (failed,) = host.told
        assert isinstance(failed, AdapterFetchFailed)
        assert failed.failure.kind is kind, (adapter, failed)


async def test_what_gave_way_is_told_before_what_came(host: Host) -> None:
    for name in ("a", "b", "c"):
        await host.fetch(name, size=3_000)
    *gone, came = await host.fetch("d", size=3_000)
    assert [(event.node_id, event.adapter_id) for event in gone if isinstance(event, AdapterDeleted)] == [(node, "a") for node in NODES]
    assert isinstance(came, AdapterFetched)


async def test_a_slot_is_handed_files_and_one_that_proved_damaged_is_gone_for_the_next_fetch(host: Host) -> None:
    ink = served(host.origin, "ink")
    await host.fetch("ink")
    order = AdaptReplica(slot=SLOT, model_id=ModelId("m"), adapters=(ink,))
    await host.adapters.adapt(order, host.call)
    path = host.files.path_of(ink)
    assert host.calls == [("adapt", order, (AdapterFile(adapter_id=ink.adapter_id, path=path, digest=ink.weights_digest),))]
    for kind, left in ((FailureKind.BAD_INPUT, True), (FailureKind.BAD_WEIGHTS, False)):
        host.told.clear()
        await host.adapters.adapt(order, host.call)
        failed = ReplicaAdaptFailed(
            slot=SLOT, model_id=ModelId("m"), adapters=(), memory_bytes=1, failure=Failure(kind=kind, message="told by the test")
        )
        await host.adapters.adapt_failed(failed)
        assert host.told[-1] == failed
        assert path.exists() is left
    assert [event.adapter_id for event in host.told if isinstance(event, AdapterDeleted)] == ["ink", "ink"]
