"""Sites of the simulated fleet read weights from one another; when the source dies in the middle the origin store goes on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import log
from statistics import median, stdev

import pytest

from agents.core.events import AgentEvent, FetchYielded, WeightsFetched
from agents.core.outputs import DeleteWeights, FetchWeights, YieldFetch
from atoll.model.assignment import Peer, Sources
from atoll.model.ids import FleetId, NodeId, SiteId
from atoll.model.placement import FetchFrom
from atoll.model.site import LinkSpec, SiteRuntime
from orchestrator.core import events
from sims.checks import History
from sims.faults import Faults
from sims.fleet import GB, GPUS, Fleet
from sims.run import Options, run_seed
from sims.store import SimStore
from sims.truth import Truth
from sims.weights import Disks, SimWeights, Storage
from sims.world import SECOND_US, World
from tests.unit.fleet_of_machines import Fleet as Machines
from tests.unit.fleet_of_machines import model, pool, site

SRC, DST, NODE = SiteId("src"), SiteId("dst"), NodeId("p-0")
MODEL = replace(model("m", 40), weights_digest="sha256:" + "a" * 64)
FETCH = FetchWeights(node_id=NODE, model=MODEL, fetch_from=Sources(peers=(Peer(site_id=SRC, url="http://src.simulated"),)))


class Pair:
    """A site that has a model and one that fetches it from there. The link is ten times quicker than the origin store, as priors go."""

    def __init__(self) -> None:
        self.world = World(1)
        faults = Faults(self.world, frozenset())
        history = History(self.world, SimStore(self.world, faults, FleetId("f")), 2)
        sites = tuple(replace(site(name, pool("p"), origin_gbs=1), wan_bytes_per_s=10 * GB) for name in (SRC, DST))
        link = LinkSpec(src=SRC, dst=DST, rtt_us=10_000, bytes_per_s=10 * GB)
        truth = Truth(1, Fleet(sites=sites, links=(link,), models=(), adapters=()), GPUS)
        disks = Disks()
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
    unlinked = replace(FETCH, fetch_from=Sources(peers=(Peer(site_id=DST, url="http://dst.simulated"),)))
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


# --- several sources ----------------------------------------------------------------------------------------------------------

GOALS = (DST, SiteId("goal"))


class Many:
    """Two sites that have a model, two that want it, and the origin store as quick as one of the links."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        faults = Faults(self.world, frozenset())
        history = History(self.world, SimStore(self.world, faults, FleetId("f")), 2)
        names = (SRC, SiteId("other"), *GOALS)
        self.sites = tuple(
            replace(site(name, pool("p"), origin_gbs=2), wan_bytes_per_s=40 * GB, weights_url=f"http://{name}.simulated") for name in names
        )
        self.links = tuple(LinkSpec(src=src, dst=dst, rtt_us=10_000, bytes_per_s=2 * GB) for src in names[:2] for dst in GOALS)
        truth = Truth(seed, Fleet(sites=self.sites, links=self.links, models=(), adapters=()), GPUS)
        disks = Disks()
        self.took_us: dict[SiteId, int] = {}
        self.at: dict[SiteId, SimWeights] = {}
        for name in names:
            nodes = {NODE: Storage(pool=pool("p"))}
            if name not in GOALS:
                nodes[NODE].disk[MODEL.model_id] = (MODEL.weights_bytes, MODEL.weights_digest)
            chance = self.world.stream(name)
            self.at[name] = SimWeights(self.world, faults, history, truth, name, nodes, disks, chance, partial(self._say, name))
            self.at[name].agent_started()

    def _say(self, name: SiteId, event: AgentEvent) -> None:
        if isinstance(event, WeightsFetched):
            self.took_us[name] = event.elapsed_us

    def fetch(self, *peers: str, origin_too: bool = True, goals: tuple[SiteId, ...] = (DST,)) -> int:
        """How long the first of these sites takes when all of them read these sources at once."""
        named = tuple(Peer(site_id=SiteId(name), url=f"http://{name}.simulated") for name in peers)
        fetch_from = Sources(peers=named, origin_too=origin_too) if named else None
        for goal in goals:
            self.at[goal].perform(replace(FETCH, fetch_from=fetch_from))
        self.world.run(self.world.now_us + 2_000 * SECOND_US)
        return self.took_us[goals[0]]


@pytest.mark.parametrize("seed", range(8))
def test_rates_of_several_sources_add_up(seed: int) -> None:
    alone = [Many(seed).fetch("src", origin_too=False), Many(seed).fetch("other", origin_too=False), Many(seed).fetch()]
    together = Many(seed).fetch("src", "other")
    assert together == pytest.approx(1 / sum(1 / us for us in alone), rel=0.001)


def test_what_a_site_gives_is_shared_by_those_that_read_it_and_free_again_when_one_has_all() -> None:
    alone = Many(1).fetch("src", origin_too=False)
    many = Many(1)
    many.fetch("src", origin_too=False, goals=GOALS)
    other = Many(1)
    other.fetch("src", origin_too=False, goals=GOALS[1:])
    shorter, longer = sorted((alone, other.took_us[GOALS[1]]))
    # The one with less to do gets half of its rate to the end; then the other has its own again.
    assert sorted(many.took_us.values()) == pytest.approx([2 * shorter, shorter + longer], rel=0.001)


@pytest.mark.parametrize("sources", [("src",), ("src", "other")])
def test_a_core_predicts_fetches_of_several_sources_no_worse_than_of_one(sources: tuple[str, ...]) -> None:
    """Hidden factors of links and of the origin store, and the modes of each, make single fetches differ from what is predicted; where
    several are read at once that evens out."""
    fleet = Machines(*Many(1).sites, models=(MODEL,), runtime=SiteRuntime.TWIN)
    links = tuple(link for link in Many(1).links if link.src in sources)
    fleet.happen(events.SitesApplied(request=fleet.request(), actor="t", reason="", sites=(), links=links))
    for name in sources:
        fleet.agents[SiteId(name)].disk = {"m"}
        fleet.report(name)
    ctx = fleet.machine.context
    column, ways = ctx.columns.by_pool[DST, pool("p").pool_id], ctx.estimator.ways(MODEL)
    assert ways.source(column.index) == FetchFrom(sites=tuple(sorted(map(SiteId, sources))), origin_too=True)
    seeds = range(40)
    both = [log(Many(seed).fetch(*sources) / int(ways.us[column.index])) for seed in seeds]
    one = [log(Many(seed).fetch() / (MODEL.weights_bytes / (2 * GB) * SECOND_US)) for seed in seeds]
    assert stdev(both) < stdev(one)
    assert abs(median(both)) < abs(median(one)) + 0.1
