"""Ways that transfers share, against theory: each gets an equal part, and ends when a schedule by hand says."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.core.events import AgentEvent, WeightsFetched
from agents.core.outputs import FetchWeights
from agents.twin.fair_link import FairLink
from agents.twin.peers import TwinPeers
from agents.twin.plant import Plant
from atoll.model.assignment import Peer, Sources
from atoll.model.ids import ModelId, SiteId, TenantId
from atoll.model.site import LinkSpec
from sims.play.player import Player
from sims.play.timeline import Timeline
from sims.traces.job import TraceJob
from tests.simulation.played import Law, Rows, one_pool
from tests.simulation.theory import SECOND_US, by_cycles
from tests.unit.fleet_of_machines import GB, GPUS, model, pool, site

GB_US = SECOND_US // 10  # what a GB takes alone


class BySize(Law):
    """Fetches take as long as their bytes say."""

    def __init__(self) -> None:
        super().__init__(SECOND_US, exponential=False)

    def fetch_us(self, size_bytes: int, bytes_per_s: int, rtt_us: int, site_id: SiteId, key: str) -> int:
        del bytes_per_s, rtt_us, site_id, key
        return size_bytes * GB_US // GB


def shared(begins_us: Sequence[int], works_us: Sequence[int]) -> list[Fraction]:
    """When each of these transfers ends if all that are under way get an equal part, without rounding."""
    left = {number: Fraction(work) for number, work in enumerate(works_us)}
    ends, active, now = [Fraction(0)] * len(works_us), set[int](), Fraction(0)
    coming = sorted(range(len(works_us)), key=lambda number: (begins_us[number], number))
    while coming or active:
        until = Fraction(begins_us[coming[0]]) if coming else None
        if active:
            first = min(active, key=lambda number: (left[number], number))
            end = now + left[first] * len(active)
            if until is None or end <= until:
                until = end
        assert until is not None
        for number in active:
            left[number] -= (until - now) / len(active)
        now = until
        for number in [number for number in active if left[number] <= 0]:
            ends[number] = now
            active.discard(number)
        while coming and begins_us[coming[0]] <= now:
            active.add(coming.pop(0))
    return ends


def filled(flows: Sequence[tuple[int, int, Fraction]]) -> list[Fraction]:
    """When each of these transfers (begin, work, the share of the link that it can have) ends by progressive filling, without rounding."""
    left, ends = {number: Fraction(work) for number, (_, work, _) in enumerate(flows)}, [Fraction(0)] * len(flows)
    coming, active, now = sorted(range(len(flows)), key=lambda number: flows[number][0]), set[int](), Fraction(0)
    while coming or active:
        speeds, room = dict[int, Fraction](), Fraction(1)
        for place, number in enumerate(sorted(active, key=lambda number: flows[number][2])):
            part = min(flows[number][2], room / (len(active) - place))
            speeds[number], room = part / flows[number][2], room - part
        moments = [now + left[number] / speed for number, speed in speeds.items()] + [Fraction(flows[number][0]) for number in coming[:1]]
        passed, now = min(moments) - now, min(moments)
        for number, speed in speeds.items():
            left[number] -= speed * passed
            if left[number] == 0:
                ends[number] = now
                active.discard(number)
        while coming and flows[coming[0]][0] <= now:
            active.add(coming.pop(0))
    return ends


SHARES = st.sampled_from([Fraction(1), Fraction(1), Fraction(1, 2), Fraction(1, 3), Fraction(1, 7), Fraction(1, 16)])


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(1, 80), SHARES), min_size=1, max_size=9))
@settings(max_examples=200, deadline=None)
def test_a_link_is_filled_progressively_and_carries_what_comes(flows: list[tuple[int, int, Fraction]]) -> None:
    link, ends, ended = FairLink(), [0.0] * len(flows), list[int]()
    coming = sorted(range(len(flows)), key=lambda number: flows[number][0])
    while coming or len(link):
        end = link.next_end()
        if coming and (end is None or flows[coming[0]][0] <= end):
            number = coming.pop(0)
            begin, work, share = flows[number]
            link.add(begin, work, partial(ended.append, number), share=float(share))
            continue
        assert end is not None
        for done in link.take_done(end):
            done()
            ends[ended.pop()] = end
    assert ends == pytest.approx([float(end) for end in filled(flows)], abs=1e-6)
    assert link.carried == pytest.approx(float(sum(work * share for _, work, share in flows)), abs=1e-6)


def fetched(begins_us: Sequence[int], sizes_gb: Sequence[int], *, nodes: int) -> list[int]:
    """When each of these models has come to a site over its way to the origin store; they go to its nodes in turn."""
    timeline, ended = Timeline(), dict[ModelId, int]()

    def tell(event: AgentEvent) -> None:
        if isinstance(event, WeightsFetched):
            ended[event.model_id] = timeline.now

    pools = replace(pool("p", gpus=1), nodes=nodes)
    plant = Plant(site("s", pools), gpus=GPUS, truth=BySize(), timers=timeline, tell=tell)
    plant.pace_us = 10**15  # nobody asks how far they have come
    for number, (at_us, size_gb) in enumerate(zip(begins_us, sizes_gb, strict=True)):
        command = FetchWeights(node_id=pools.node_id(number % nodes), model=model(f"m{number}", size_gb))
        timeline.after(at_us, partial(plant.perform, command))
    timeline.run(10**14)
    return [ended[ModelId(f"m{number}")] for number in range(len(sizes_gb))]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40 * GB_US), st.integers(1, 60)), min_size=1, max_size=9))
def test_any_transfers_over_one_way_end_as_by_hand(asked: list[tuple[int, int]]) -> None:
    begins_us, sizes_gb = [at_us for at_us, _ in asked], [size for _, size in asked]
    wanted = shared(begins_us, [size * GB_US for size in sizes_gb])
    for found_us, exact_us in zip(fetched(begins_us, sizes_gb, nodes=3), wanted, strict=True):
        assert abs(found_us - exact_us) <= 1  # a moment is told in whole microseconds


def test_jobs_of_a_run_whose_weights_share_the_way_fetch_as_by_hand() -> None:
    """Three cold models for three GPUs of a site, each at a node of its own, before the first of them has come."""
    sizes_gb, gap_us = {"sd": 10, "flux": 24, "wan": 28}, SECOND_US // 2
    jobs = [TraceJob(arrival_us=number * gap_us, model_id=ModelId(name), tenant=TenantId("t")) for number, name in enumerate(sizes_gb)]
    scenario = one_pool(1)
    apart = replace(scenario, sites=(site("here", replace(pool("p"), nodes=3, gpus_per_node=1)),))
    rows = Rows()
    Player(apart, jobs, rows, truth=BySize()).play()
    wanted = shared([job.arrival_us for job in jobs], [size * GB_US for size in sizes_gb.values()])
    ordered = sorted(rows.jobs, key=lambda row: row.number)
    for row, exact_us in zip(ordered, wanted, strict=True):
        assert row.fetched and abs(row.arrival_us + row.fetch_us - exact_us) <= 1


def test_the_mean_of_a_shared_way_is_that_of_processor_sharing_whatever_the_sizes() -> None:
    """M/G/1-PS: T(x) = x / (1 - load) for a transfer that takes x alone, and depends on the law of sizes by its mean alone."""
    load, small_gb, large_gb, small_share = 0.5, 1, 11, 0.9
    mean_us = (small_share * small_gb + (1 - small_share) * large_gb) * GB_US
    chance, at_us, begins_us, sizes_gb = random.Random(7), 0, [], []
    for _ in range(12_000):
        at_us += round(chance.expovariate(load / mean_us))
        begins_us.append(at_us)
        sizes_gb.append(small_gb if chance.random() < small_share else large_gb)
    ends_us = fetched(begins_us, sizes_gb, nodes=1)
    took_us = [end - begin for begin, end in zip(begins_us, ends_us, strict=True)]
    found_idle, busy_until_us = [], -1
    for number, (begin, end) in enumerate(zip(begins_us, ends_us, strict=True)):
        if begin >= busy_until_us:
            found_idle.append(number)
        busy_until_us = max(busy_until_us, end)
    for size_gb in (small_gb, large_gb):
        found = by_cycles(took_us, found_idle, lambda number: sizes_gb[number] == size_gb)  # noqa: B023 - called at once
        assert found.agrees(size_gb * GB_US / (1 - load), error_max=0.05)


class ByRate(Law):
    """Fetches take as long as the way lets them."""

    def __init__(self) -> None:
        super().__init__(SECOND_US, exponential=False)

    def fetch_us(self, size_bytes: int, bytes_per_s: int, rtt_us: int, site_id: SiteId, key: str) -> int:
        del rtt_us, site_id, key
        return size_bytes * SECOND_US // bytes_per_s


def test_a_fetch_from_a_slow_peer_leaves_the_way_to_the_site_to_others() -> None:
    """10 GB at 1 GB/s from a peer, and 9 GB from the origin store over a way of 10 GB/s: nine tenths of it are left for a second."""
    timeline, ended = Timeline(), dict[ModelId, int]()

    def tell(event: AgentEvent) -> None:
        if isinstance(event, WeightsFetched):
            ended[event.model_id] = timeline.now

    here, there = (replace(site(name, pool("p")), wan_bytes_per_s=10 * GB, origin_bytes_per_s=10 * GB) for name in ("here", "there"))
    link = LinkSpec(src=there.site_id, dst=here.site_id, rtt_us=0, bytes_per_s=GB)
    peers = TwinPeers((here, there), {(link.src, link.dst): link}, here=(here.site_id,))
    plant = Plant(here, gpus=GPUS, truth=ByRate(), timers=timeline, tell=tell, peers=peers)
    plant.pace_us = 10**15
    node_id = here.pools[0].node_id(0)
    of_peer = Sources(peers=(Peer(site_id=there.site_id, url="http://there"),))
    plant.perform(FetchWeights(node_id=node_id, model=model("slow", 10), fetch_from=of_peer))
    plant.perform(FetchWeights(node_id=node_id, model=model("wide", 9)))
    timeline.run(10**9)
    assert ended == {"wide": SECOND_US, "slow": 10 * SECOND_US}
