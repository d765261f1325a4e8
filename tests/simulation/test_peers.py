"""Sites of the simulated fleet read weights from one another; when the source dies in the middle the origin store goes on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from agents.core.events import AgentEvent, FetchYielded, WeightsFetched
from agents.core.outputs import DeleteWeights, FetchWeights, YieldFetch
from atoll.model.assignment import Peer
from atoll.model.ids import FleetId, NodeId, SiteId
from atoll.model.site import LinkSpec
from sims.checks import History
from sims.faults import Faults
from sims.fleet import GB, GPUS, Fleet
from sims.run import Options, run_seed
from sims.store import SimStore
from sims.truth import Truth
from sims.weights import Disks, SimWeights, Storage
from sims.world import SECOND_US, World
from tests.unit.fleet_of_machines import model, pool, site

SRC, DST, NODE = SiteId("src"), SiteId("dst"), NodeId("p-0")
MODEL = replace(model("m", 40), weights_digest="sha256:" + "a" * 64)
FETCH = FetchWeights(node_id=NODE, model=MODEL, fetch_from=Peer(site_id=SRC, url="http://src.simulated"))


class Pair:
    """A site that has a model and one that fetches it from there. The link is ten times quicker than the origin store, as priors go."""

    def __init__(self) -> None:
        self.world = World(1)
        faults = Faults(self.world, frozenset())
        history = History(self.world, SimStore(self.world, faults, FleetId("f")), 2)
        sites = tuple(replace(site(name, pool("p"), origin_gbs=1), wan_bytes_per_s=10 * GB) for name in (SRC, DST))
        link = LinkSpec(src=SRC, dst=DST, rtt_us=10_000, bytes_per_s=10 * GB)
        truth = Truth(1, Fleet(sites=sites, links=(link,), models=(), adapters=()), GPUS)
        disks: Disks = {}
        self.told: list[tuple[SiteId, int, AgentEvent]] = []
        self.nodes = {name: {NODE: Storage(pool=pool("p"))} for name in (SRC, DST)}
        self.at = {
            name: SimWeights(
                self.world, faults, history, truth, name, self.nodes[name], disks, self.world.stream(name), partial(self._say, name)
            )
            for name in (SRC, DST)
        }
        self.nodes[SRC][NODE].disk[MODEL.model_id] = (MODEL.weights_bytes, MODEL.weights_digest)
        for one in self.at.values():
            one.agent_started()

    def _say(self, name: SiteId, event: AgentEvent) -> None:
        self.told.append((name, self.world.now_us, event))

    def run(self, seconds: float) -> None:
        self.world.run(self.world.now_us + int(seconds * SECOND_US))

    @property
    def fetched_us(self) -> int:
        """When the model was at its goal."""
        (at_us,) = [at_us for name, at_us, event in self.told if name == DST and isinstance(event, WeightsFetched)]
        return at_us


def _alone_us(command: FetchWeights) -> int:
    pair = Pair()
    pair.at[DST].perform(command)
    pair.run(1_000)
    return pair.fetched_us


def test_a_fetch_takes_what_its_source_gives() -> None:
    assert _alone_us(FETCH) < _alone_us(replace(FETCH, fetch_from=None))
    unlinked = replace(FETCH, fetch_from=Peer(site_id=DST, url="http://dst.simulated"))
    assert _alone_us(unlinked) == _alone_us(replace(FETCH, fetch_from=None))


@pytest.mark.parametrize("fate", ["the agent dies", "the power fails", "the model is deleted"])
def test_when_the_source_dies_the_rest_comes_from_the_origin_store(fate: str) -> None:
    peer_us, origin_us = _alone_us(FETCH), _alone_us(replace(FETCH, fetch_from=None))
    pair = Pair()
    pair.at[DST].perform(FETCH)
    pair.world.run(peer_us // 2)
    match fate:
        case "the agent dies":
            pair.at[SRC].agent_died()
        case "the power fails":
            pair.at[SRC].agent_died()
            pair.at[SRC].power_lost(disk_lost=True)
        case _:
            pair.at[SRC].perform(DeleteWeights(node_id=NODE, model_id=MODEL.model_id))
    pair.run(1_000)
    assert abs(pair.fetched_us - (peer_us // 2 + origin_us // 2)) < SECOND_US // 10


def test_a_fetch_that_ended_does_not_hear_of_its_source_again() -> None:
    pair = Pair()
    pair.at[DST].perform(FETCH)
    pair.run(0.1)
    pair.at[DST].perform(YieldFetch(node_id=NODE, model_id=MODEL.model_id))
    pair.at[SRC].agent_died()
    pair.run(1_000)
    assert [type(event) for _, _, event in pair.told] == [FetchYielded]


def test_seeds_have_peers_that_give_weights() -> None:
    """Not in every seed; in a few of them together many."""
    found: list[str] = []
    for seed in (3, 8, 12):
        outcome = run_seed(seed, Options(), listener=found.append)
        assert outcome.violation is None and outcome.vacuous is None
    assert sum(" fetches " in line and " from site-" in line for line in found) >= 3
