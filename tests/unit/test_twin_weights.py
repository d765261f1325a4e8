"""What a twin holds in memory and on disk: weights that left a GPU load faster, pinned ones stay, a fetch that yields goes on later."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from agents.core.events import (
    AdapterDeleted,
    AdapterFetched,
    AdapterFetchFailed,
    FetchFailed,
    FetchYielded,
    HostMemoryChanged,
    ReplicaAdapted,
    ReplicaEvicted,
    ReplicaLoaded,
    WeightsDeleted,
    WeightsFetched,
)
from agents.core.outputs import AdaptReplica, EvictReplica, FetchAdapter, FetchWeights, LoadReplica, PinWeights, StageWeights, YieldFetch
from agents.runtime.twin import TwinRuntime
from agents.twin.fair_link import FairLink
from agents.twin.fetches import Flight, TwinFetches
from agents.twin.host_memory import HostMemory
from atoll.model.assignment import Sources
from atoll.model.ids import ModelId
from atoll.model.modelspec import ModelSpec
from atoll.physics.hidden import HiddenWorld
from sims.play.timeline import Timeline
from tests.unit.agent_core_site import adapter
from tests.unit.fleet_of_machines import GB, GPUS, model, pool, site
from tests.unit.test_agent_twin import NODE, SLOT, Heard

# Room for two models of 10 GB in memory, for three on disk.
SMALL = replace(pool("p"), node=replace(pool("p").node, host_memory_bytes=25 * GB, disk_cache_bytes=35 * GB))


@pytest.fixture
async def heard() -> AsyncIterator[Heard]:
    runtime = TwinRuntime(site("s", SMALL), gpus=GPUS, hidden=HiddenWorld(1))
    yield await Heard(runtime).start()
    await runtime.close(keep_work=True)


def names(event: HostMemoryChanged) -> list[str]:
    return [model_id for model_id, _ in event.models]


async def load(heard: Heard, one: ModelSpec) -> ReplicaLoaded:
    return await heard.perform(LoadReplica(slot=SLOT, model=one), ReplicaLoaded)


async def evict(heard: Heard, one: ModelSpec) -> list[str]:
    await heard.perform(EvictReplica(slot=SLOT, model_id=one.model_id), ReplicaEvicted)
    return names(await heard.next(HostMemoryChanged))


async def test_weights_that_left_the_gpu_stay_in_memory_and_load_without_the_disk(heard: Heard) -> None:
    one = model("m")
    await heard.perform(FetchWeights(node_id=NODE, model=one), WeightsFetched)
    hidden = HiddenWorld(1)
    assert (await load(heard, one)).elapsed_us > 0
    assert await evict(heard, one) == ["m"]
    warm = (await load(heard, one)).elapsed_us
    key = f"{NODE}.0/m#2"
    h2d = GPUS[SMALL.gpu_type].h2d_bytes_per_s
    from_host_us = hidden.stage_us(one, SMALL.node.disk_bytes_per_s, h2d, True, site("s").site_id, key)
    assert warm == from_host_us + hidden.init_us(one, site("s").site_id, key)


async def test_what_its_neighbour_has_a_node_copies_unless_it_is_told_to_fetch_it_from_outside() -> None:
    pools = replace(pool("p"), nodes=3)
    slow = replace(site("s", pools, origin_gbs=10), wan_bytes_per_s=10 * GB, lan_bytes_per_s=GB // 10)
    heard = await Heard(TwinRuntime(slow, gpus=GPUS, hidden=HiddenWorld(1)), scale=100_000).start()
    first, second, third = (pools.node_id(index) for index in range(3))
    await heard.perform(FetchWeights(node_id=first, model=model("m")), WeightsFetched)
    outside = FetchWeights(node_id=second, model=model("m"), fetch_from=Sources(peers=(), origin_too=True))
    fetched = await heard.perform(outside, WeightsFetched)
    copied = await heard.perform(FetchWeights(node_id=third, model=model("m")), WeightsFetched)
    assert copied.elapsed_us > 10 * fetched.elapsed_us
    await heard.runtime.close(keep_work=True)


async def test_memory_forgets_the_least_recently_used_but_never_what_is_wanted_there(heard: Heard) -> None:
    for name in ("m", "n"):
        await heard.perform(FetchWeights(node_id=NODE, model=model(name)), WeightsFetched)
        await load(heard, model(name))
        await evict(heard, model(name))
    heard.runtime.perform(PinWeights(node_id=NODE, host=(ModelId("m"),)))
    await heard.perform(FetchWeights(node_id=NODE, model=model("o")), WeightsFetched)
    staged = await heard.perform(StageWeights(node_id=NODE, model=model("o")), HostMemoryChanged)
    assert names(staged) == ["m", "o"]
    assert staged.ended == ("o",)


async def test_a_full_disk_lets_go_of_what_is_not_pinned_and_of_nothing_for_a_fetch_ahead(heard: Heard) -> None:
    for name in ("m", "n", "o"):
        await heard.perform(FetchWeights(node_id=NODE, model=model(name)), WeightsFetched)
    failed = await heard.perform(FetchWeights(node_id=NODE, model=model("p"), ahead=True), FetchFailed)
    assert "room" in failed.failure.message
    heard.runtime.perform(PinWeights(node_id=NODE, disk=((ModelId("m"), model("m").weights_digest),)))
    heard.runtime.perform(FetchWeights(node_id=NODE, model=model("p")))
    assert (await heard.next(WeightsDeleted)).model_id == "n"
    assert (await heard.next(WeightsFetched)).model_id == "p"


async def test_a_fetch_that_yields_keeps_what_has_come(heard: Heard) -> None:
    heard.rescale(1)
    heard.runtime.perform(FetchWeights(node_id=NODE, model=model("m"), ahead=True))
    yielded = await heard.perform(YieldFetch(node_id=NODE, model_id=ModelId("m")), FetchYielded)
    assert yielded.model_id == "m"
    heard.runtime.perform(YieldFetch(node_id=NODE, model_id=ModelId("m")))
    heard.rescale(10_000)
    await heard.perform(FetchWeights(node_id=NODE, model=model("m")), WeightsFetched)
    assert not [event for event in heard.events if isinstance(event, FetchYielded)], "one answer to one fetch"


def test_a_link_gives_back_the_work_that_was_left_of_a_transfer_taken_out() -> None:
    link = FairLink()
    ended: list[str] = []
    first = link.add(0.0, 10.0, lambda: ended.append("first"))
    link.add(0.0, 10.0, lambda: ended.append("second"))
    assert link.left(4.0, first) == pytest.approx(8.0)
    assert link.take_out(4.0, first) == pytest.approx(8.0)
    assert link.next_end() == pytest.approx(12.0)
    for done in link.take_done(12.0):
        done()
    assert ended == ["second"]
    assert link.take_out(12.0, first) == 0.0


def test_fetches_of_one_source_that_end_in_one_moment_end_once_each() -> None:
    """The end of the first gives the second, whose last byte has come too, more of what they shared."""
    timeline, ended = Timeline(), list[str]()

    def done(flight: Flight) -> None:
        assert isinstance(flight.command, FetchWeights)
        ended.append(flight.command.model.model_id)
        for name in ("m", "n"):
            fetches.retime(NODE, ModelId(name), 5_000_000, 1.0)

    fetches = TwinFetches(timeline, lambda: 1_000_000, done=done, came=lambda *_: None)
    for name in ("m", "n"):
        fetches.begin(FetchWeights(node_id=NODE, model=model(name)), 10_000_000, 0.5)
    timeline.run(60_000_000)
    carried_us, booked_us = fetches.books()
    assert sorted(ended) == ["m", "n"]
    assert carried_us == pytest.approx(booked_us)


def test_what_is_larger_than_memory_is_not_held_and_pushes_nobody_out() -> None:
    memory = HostMemory(25 * GB)
    assert memory.hold(model("m"))
    assert not memory.hold(model("big", 30))
    assert memory.models == ((ModelId("m"), model("m").weights_digest),)
    assert memory.free_bytes == 15 * GB
    assert not memory.holds(replace(model("m"), weights_digest="sha256:" + "1" * 64))


async def test_adapters_come_over_the_same_link_and_are_put_on_in_the_time_of_the_world(heard: Heard) -> None:
    one, ink, wash = model("m"), adapter("ink", 200), adapter("wash", 400)
    await heard.perform(FetchWeights(node_id=NODE, model=one), WeightsFetched)
    await load(heard, one)
    fetched = await heard.perform(FetchAdapter(node_id=NODE, adapter=ink), AdapterFetched)
    assert (fetched.adapter_id, fetched.bytes, fetched.weights_digest) == ("ink", ink.weights_bytes, ink.weights_digest)
    await heard.perform(FetchAdapter(node_id=NODE, adapter=wash), AdapterFetched)
    both = await heard.perform(AdaptReplica(slot=SLOT, model_id=one.model_id, adapters=(ink, wash)), ReplicaAdapted)
    assert both.adapters == ("ink", "wash")
    assert both.memory_bytes == one.resident_bytes + ink.weights_bytes + wash.weights_bytes
    hidden, where = HiddenWorld(1), site("s").site_id
    assert both.elapsed_us == sum(hidden.patch_us(each, where, f"{NODE}.0/m+1/{each.adapter_id}") for each in (ink, wash))
    alone = await heard.perform(AdaptReplica(slot=SLOT, model_id=one.model_id, adapters=(), unload=(ink.adapter_id,)), ReplicaAdapted)
    assert (alone.adapters, alone.memory_bytes) == (("wash",), one.resident_bytes + wash.weights_bytes)
    await evict(heard, one)
    await load(heard, one)
    anew = await heard.perform(AdaptReplica(slot=SLOT, model_id=one.model_id, adapters=(ink,)), ReplicaAdapted)
    assert anew.adapters == ("ink",)


async def test_adapters_give_way_to_adapters_but_models_never_do(heard: Heard) -> None:
    one = model("m")
    await heard.perform(FetchWeights(node_id=NODE, model=one), WeightsFetched)
    await load(heard, one)  # 25 GB are left
    for name in ("a", "b"):
        await heard.perform(FetchAdapter(node_id=NODE, adapter=adapter(name, 10_000)), AdapterFetched)
    await heard.perform(AdaptReplica(slot=SLOT, model_id=one.model_id, adapters=(adapter("a", 10_000),)), ReplicaAdapted)
    heard.runtime.perform(FetchAdapter(node_id=NODE, adapter=adapter("c", 10_000)))
    assert (await heard.next(AdapterDeleted)).adapter_id == "b"
    await heard.next(AdapterFetched)
    failed = await heard.perform(FetchAdapter(node_id=NODE, adapter=adapter("d", 26_000)), AdapterFetchFailed)
    assert failed.failure.kind.value == "disk_full"
