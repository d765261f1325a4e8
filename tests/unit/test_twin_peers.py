"""Twins of one process: weights pass between them over links with a hidden rate of their own, and the origin store is always behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from agents.core.events import AdapterFetched, FetchYielded, RatesMeasured, WeightsFetched
from agents.core.outputs import DeleteWeights, FetchAdapter, FetchWeights, YieldFetch
from agents.runtime.twin import TwinRuntime
from agents.twin.peers import TwinPeers
from atoll.model.assignment import Peer, Sources
from atoll.model.ids import ModelId, SiteId
from atoll.model.site import LinkSpec
from atoll.physics.hidden import HiddenWorld
from tests.unit.fleet_of_machines import GB, GPUS, adapter, model, pool, site
from tests.unit.test_agent_twin import NODE, Heard

SRC, DST, FAR = SiteId("src"), SiteId("dst"), SiteId("far")
SITES = tuple(replace(site(name, pool("p")), wan_bytes_per_s=50 * GB) for name in (SRC, DST, FAR))
LINK = LinkSpec(src=SRC, dst=DST, rtt_us=10_000, bytes_per_s=20 * GB)
FETCH = FetchWeights(node_id=NODE, model=model("m", 40), fetch_from=Sources(peers=(Peer(site_id=SRC, url="http://src.example"),)))
PLAIN = replace(FETCH, fetch_from=None)
WORLD = HiddenWorld(1)


class Twins:
    """A twin that has the model, and one that wants it."""

    def __init__(self, *, links: tuple[LinkSpec, ...] = (LINK,)) -> None:
        self.peers = TwinPeers(SITES, {(link.src, link.dst): link for link in links}, here=(SRC, DST))
        self.src, self.dst = (Heard(TwinRuntime(spec, gpus=GPUS, hidden=WORLD, peers=self.peers)) for spec in SITES if spec.site_id != FAR)

    async def start(self) -> Twins:
        for one in (self.src, self.dst):
            await one.start()
        await self.src.perform(PLAIN, WeightsFetched)
        return self

    async def close(self) -> None:
        for one in (self.src, self.dst):
            await one.runtime.close(keep_work=False)


@pytest.fixture
async def twins() -> AsyncIterator[Twins]:
    made = await Twins().start()
    yield made
    await made.close()


async def test_a_fetch_from_a_peer_takes_what_the_link_gives_and_says_nothing_of_the_origin_store(twins: Twins) -> None:
    fetched = await twins.dst.perform(FETCH, WeightsFetched)
    truth_us = WORLD.fetch_us(40 * GB, LINK.bytes_per_s, LINK.rtt_us, SiteId("src to dst"), f"{NODE}/m#1")
    assert truth_us * 99 // 100 <= fetched.elapsed_us  # what a timer of the real clock is off, ten thousand times as long
    assert not any(isinstance(event, RatesMeasured) for event in twins.dst.events)
    assert fetched.weights_digest == FETCH.model.weights_digest


async def test_the_hidden_factor_is_the_links_and_not_the_sites() -> None:
    peers = TwinPeers(SITES, {(LINK.src, LINK.dst): LINK})
    assert len({peers.fetch_us(HiddenWorld(seed), SRC, DST, ModelId("m"), GB, "k") for seed in range(5)}) == 5


@pytest.mark.parametrize("case", ["no link", "the peer does not have it", "an unknown peer"])
async def test_without_a_way_the_origin_store_gives_it(case: str) -> None:
    made = await Twins(links=() if case == "no link" else (LINK,)).start()
    try:
        command = replace(FETCH, model=model("other")) if case == "the peer does not have it" else FETCH
        if case == "an unknown peer":
            command = replace(FETCH, fetch_from=Sources(peers=(Peer(site_id=SiteId("nobody"), url="http://nobody.example"),)))
        await made.dst.perform(command, WeightsFetched)
        await made.dst.next(RatesMeasured)
    finally:
        await made.close()


async def test_a_peer_of_another_process_is_taken_to_have_what_it_is_said_to_have() -> None:
    peers = TwinPeers(SITES, {(FAR, DST): replace(LINK, src=FAR)}, here=(DST,))
    assert peers.fetch_us(WORLD, FAR, DST, ModelId("m"), GB, "k") is not None


@pytest.mark.parametrize("fate", ["deleted", "gone"])
async def test_when_the_source_loses_the_weights_the_rest_comes_from_the_origin_store(twins: Twins, fate: str) -> None:
    twins.dst.rescale(10)  # slow enough to be in the midst of it
    twins.dst.runtime.perform(FETCH)
    if fate == "deleted":
        twins.src.runtime.perform(DeleteWeights(node_id=NODE, model_id=ModelId("m")))
    else:
        await twins.src.runtime.close(keep_work=False)
    assert not twins.peers._joint.reads_peers((DST, NODE, ModelId("m")))
    await twins.dst.next(WeightsFetched)
    await twins.dst.next(RatesMeasured)


async def test_a_fetch_that_yielded_goes_on_from_whoever_is_told_then(twins: Twins) -> None:
    twins.dst.rescale(10)
    ahead = replace(FETCH, ahead=True)
    twins.dst.runtime.perform(ahead)
    await twins.dst.perform(YieldFetch(node_id=NODE, model_id=ModelId("m")), FetchYielded)
    twins.src.runtime.perform(DeleteWeights(node_id=NODE, model_id=ModelId("m")))
    await twins.dst.perform(PLAIN, WeightsFetched)


# --- several sources ----------------------------------------------------------------------------------------------------------


async def test_the_origin_store_beside_a_peer_makes_a_fetch_shorter_by_what_it_gives(twins: Twins) -> None:
    both = replace(FETCH, fetch_from=Sources(peers=FETCH.fetch_from.peers if FETCH.fetch_from else (), origin_too=True))
    fetched = await twins.dst.perform(both, WeightsFetched)
    key = f"{NODE}/m#1"
    alone_us = [
        WORLD.fetch_us(40 * GB, LINK.bytes_per_s, LINK.rtt_us, SiteId("src to dst"), key),
        WORLD.fetch_us(40 * GB, min(SITES[1].origin_bytes_per_s, SITES[1].wan_bytes_per_s), 0, DST, key),
    ]
    together_us = 1 / sum(1 / us for us in alone_us)
    assert together_us * 0.99 <= fetched.elapsed_us
    assert not any(isinstance(event, RatesMeasured) for event in twins.dst.events)


async def test_two_that_read_one_peer_share_what_it_gives() -> None:
    peers = TwinPeers(SITES, {(LINK.src, LINK.dst): LINK, (SRC, FAR): replace(LINK, dst=FAR)}, here=(SRC, DST, FAR))
    src, *readers = (Heard(TwinRuntime(spec, gpus=GPUS, hidden=WORLD, peers=peers)) for spec in SITES)
    for one in (src, *readers):
        await one.start()
    await src.perform(PLAIN, WeightsFetched)
    for one in readers:
        one.rescale(100)
        one.runtime.perform(FETCH)
    whole_us = [peers._joint.whole_us((name, NODE, ModelId("m"))) for name in (DST, FAR)]
    alone_us = [WORLD.fetch_us(40 * GB, LINK.bytes_per_s, LINK.rtt_us, SiteId(f"src to {name}"), f"{NODE}/m#1") for name in (DST, FAR)]
    assert whole_us == pytest.approx([2 * us for us in alone_us], rel=0.001)
    first = readers[0].runtime
    await first.close(keep_work=False)
    assert peers._joint.whole_us((FAR, NODE, ModelId("m"))) == pytest.approx(alone_us[1], rel=0.001)
    for one in (src, readers[1]):
        await one.runtime.close(keep_work=False)


async def test_an_adapter_comes_over_the_link_of_the_peer_that_has_it(twins: Twins) -> None:
    ink, key = replace(adapter("ink", "m"), weights_bytes=20 * GB), f"{NODE}/adapter ink#1"
    told = FetchAdapter(node_id=NODE, adapter=ink, fetch_from=Peer(site_id=SRC, url="http://src.example"))
    assert twins.peers.adapter_us(WORLD, SRC, DST, ink, key) is None
    await twins.src.perform(replace(told, fetch_from=None), AdapterFetched)
    link_us = WORLD.fetch_us(20 * GB, LINK.bytes_per_s, LINK.rtt_us, SiteId("src to dst"), key)
    assert twins.peers.adapter_us(WORLD, SRC, DST, ink, key) == link_us
    fetched = await twins.dst.perform(told, AdapterFetched)
    assert fetched.elapsed_us >= link_us * 0.99 and fetched.bytes == 20 * GB
