"""Weights from peer sites: the nearest source wins, and it is told to whoever asks and to the site that fetches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model.assignment import Peer, Sources
from atoll.model.attempt import AttemptState, PhaseTimes
from atoll.model.ids import ModelId, SiteId
from atoll.model.job import Constraints, Priority
from atoll.model.learned import Component
from atoll.model.placement import Candidate, FetchFrom
from atoll.model.quote import Quote
from atoll.model.replica import Tier
from atoll.model.report import FetchFact, SiteReport
from atoll.model.site import LinkSpec, SiteRuntime, SiteSpec
from orchestrator.core import attempts, events
from orchestrator.core.machine import restore
from orchestrator.core.placement.registry import TERM_NAMES
from orchestrator.core.state import Node
from tests.unit.fleet_of_machines import GB, GPUS, SECOND, Fleet, model, pool, site, spec

FETCH, LINK = TERM_NAMES.index("fetch"), TERM_NAMES.index("link")
A, B, C = SiteId("a"), SiteId("b"), SiteId("c")
AT_A = Constraints(sites=(A,))
# 20 GB at 2 GB/s from the peer and 1 GB/s from the origin store, after a round trip; 20 s from the origin store alone.
BOTH_US = 6_716_666


def _url(name: SiteId) -> str:
    return f"http://{name}.example:8000"


def _from(*sites: SiteId, origin_too: bool = True) -> FetchFrom:
    return FetchFrom(sites=sites, origin_too=origin_too)


def _told(*sites: SiteId) -> Sources:
    return Sources(peers=tuple(Peer(site_id=name, url=_url(name)) for name in sites), origin_too=True)


def _link(src: SiteId, dst: SiteId, *, gbs: float = 2.0, rtt_ms: int = 50, usd: float = 0.0) -> LinkSpec:
    price = int(usd * 10**6)
    return LinkSpec(src=src, dst=dst, rtt_us=rtt_ms * 1_000, bytes_per_s=int(gbs * GB), egress_usd_micros_per_gb=price)


def _sites(*, origin_gbs: int = 1) -> tuple[SiteSpec, ...]:
    return tuple(
        replace(site(name, pool("p"), origin_gbs=origin_gbs), weights_url=_url(name), wan_bytes_per_s=20 * GB) for name in (A, B, C)
    )


def _fleet(*links: LinkSpec, having: tuple[SiteId, ...] = (B,), sites: tuple[SiteSpec, ...] = (), size_gb: int = 20) -> Fleet:
    """Sites a, b and c read 1 GB/s from the origin store; `having` have the model on their disks."""
    fleet = Fleet(*(sites or _sites()), models=(model("m", size_gb),))
    _apply(fleet, *links)
    for name in having:
        fleet.agents[name].disk = {"m"}
        fleet.report(name)
    return fleet


def _apply(fleet: Fleet, *links: LinkSpec, sites: tuple[SiteSpec, ...] = ()) -> None:
    fleet.happen(events.SitesApplied(request=fleet.request(), actor="t", reason="", sites=sites, links=links))


def _at_a(fleet: Fleet, priority: Priority = Priority.NORMAL) -> Candidate:
    """What a cold start at site a is quoted as."""
    quote = fleet.machine.quote_job(spec(constraints=AT_A, priority=priority), fleet.now_us)
    assert isinstance(quote, Quote) and quote.chosen is not None and quote.chosen.cold
    return quote.chosen


def test_a_near_peer_goes_before_a_slow_origin_and_the_site_is_told_where_it_is() -> None:
    fleet = _fleet(_link(B, A))
    fleet.submit(spec(constraints=AT_A))
    (assigned,) = fleet.agents[A].attempts.values()
    assert assigned.fetch_from == _told(B)
    (job,) = fleet.jobs.values()
    explanation = job.attempts[0].explanation
    assert explanation is not None and explanation.chosen.fetch_from == _from(B)
    assert explanation.chosen.terms_us[FETCH] == BOTH_US


def test_rates_of_several_sources_add_up_and_who_gives_most_comes_first() -> None:
    near = _at_a(_fleet(_link(B, A, gbs=1.5), _link(C, A, gbs=4), having=(B, C)))
    assert near.fetch_from == _from(C, B) and near.terms_us[FETCH] == 50_000 + 20 * SECOND * 2 // 13
    alike = _fleet(_link(C, A), _link(B, A), having=(C, B))
    assert _at_a(alike).fetch_from == _from(B, C)


def test_a_source_that_fills_the_sites_own_link_is_the_only_one() -> None:
    sites = tuple(replace(one, wan_bytes_per_s=4 * GB) if one.site_id == A else one for one in _sites())
    chosen = _at_a(_fleet(_link(B, A, gbs=8), _link(C, A, gbs=3), having=(B, C), sites=sites))
    assert chosen.fetch_from == _from(B, origin_too=False) and chosen.terms_us[FETCH] == 5_050_000


def test_no_more_than_four_are_read_at_once_and_none_that_hardly_gives() -> None:
    names = tuple(SiteId(f"p{number}") for number in range(6))
    sites = tuple(replace(one, wan_bytes_per_s=80 * GB) for one in _sites()[:1]) + tuple(
        replace(site(name, pool("p")), weights_url=_url(name), wan_bytes_per_s=20 * GB) for name in names
    )
    links = tuple(_link(name, A, gbs=2 + number) for number, name in enumerate(names))
    chosen = _at_a(_fleet(*links, having=names, sites=sites))
    assert chosen.fetch_from == _from(*names[:1:-1], origin_too=False) and chosen.terms_us[FETCH] == 50_000 + 20 * SECOND // 22
    slow = _fleet(_link(B, A, gbs=10), _link(C, A, gbs=0.15), having=(B, C))
    assert _at_a(slow).fetch_from == _from(B)  # it would add 1.3 %


def test_a_peer_that_gives_to_others_already_gives_less_to_one_more() -> None:
    fleet = Fleet(*_sites(), models=(model("m", 20), model("other", 30)))
    _apply(fleet, _link(B, A), _link(B, C))
    fleet.agents[B].disk = {"m", "other"}
    fleet.report("b")
    fleet.submit(spec("other", constraints=Constraints(sites=(C,))))
    (key,) = fleet.agents[C].attempts
    chosen = _at_a(fleet)
    assert chosen.fetch_from == _from(B) and chosen.terms_us[FETCH] == 10_050_000  # of 2 GB/s a half, and the origin store's 1 GB/s
    again = restore(fleet.machine.snapshot(), fleet.policy, GPUS)
    assert again.snapshot() == fleet.machine.snapshot() and again.context.columns.peers.flows(B) == 1
    fleet.agents[C].disk = {"other"}
    fleet.report("c")
    assert _at_a(fleet).terms_us[FETCH] == BOTH_US and fleet.machine.context.columns.peers.flows(B) == 0
    fleet.end_attempt("c", key, AttemptState.SUCCEEDED)


def test_a_burst_of_cold_starts_does_not_herd_onto_one_peer() -> None:
    """Two peers, the one a little quicker, and five sites that want the model at once, each of which reads one source."""
    goals = tuple(SiteId(f"goal{number}") for number in range(5))
    sites = tuple(replace(one, origin_bytes_per_s=GB // 100) for one in _sites()[1:]) + tuple(
        replace(site(name, pool("p")), wan_bytes_per_s=GB, origin_bytes_per_s=GB // 100) for name in goals
    )
    fleet = Fleet(*sites, models=(model("m", 20),))
    _apply(fleet, *(_link(src, dst, gbs=gbs) for dst in goals for src, gbs in ((B, 8.0), (C, 7.0))))
    for name in (B, C):
        fleet.agents[name].disk = {"m"}
        fleet.report(name)
    for name in goals:
        fleet.submit(spec(prompt=name, constraints=Constraints(sites=(name,))))
    read = [sources for name in goals for node in _nodes(fleet, name) for sources in node.sources.values()]
    assert sorted(read) == [(B,), (B,), (B,), (C,), (C,)] or sorted(read) == [(B,), (B,), (C,), (C,), (C,)]


def _nodes(fleet: Fleet, name: SiteId) -> list[Node]:
    return [node for place in fleet.machine.context.state.sites[name].pools.values() for node in place.nodes]


@pytest.mark.parametrize(
    "links",
    [
        pytest.param((), id="no link"),
        pytest.param((_link(A, B, gbs=10),), id="the other way round"),
        pytest.param((_link(B, A, gbs=0.12),), id="too slow to be worth asking"),
        pytest.param((_link(B, A, gbs=2, usd=0.012),), id="13.3 s sooner for 24 cents, where a dollar counts 60 s"),
    ],
)
def test_a_peer_without_a_link_that_is_worth_it_is_no_source(links: tuple[LinkSpec, ...]) -> None:
    chosen = _at_a(_fleet(*links))
    assert chosen.fetch_from is None and chosen.terms_us[FETCH] == 20 * SECOND and chosen.terms_us[LINK] == 0


def test_where_the_origin_store_fills_the_sites_link_no_peer_is_asked() -> None:
    sites = tuple(replace(one, wan_bytes_per_s=GB) if one.site_id == A else one for one in _sites())
    chosen = _at_a(_fleet(_link(B, A, gbs=10, rtt_ms=0), sites=sites))
    assert chosen.fetch_from is None and chosen.terms_us[FETCH] == 20 * SECOND


def test_a_peer_that_charges_is_worth_it_if_it_saves_more_than_that() -> None:
    chosen = _at_a(_fleet(_link(B, A, gbs=10, usd=0.01)))
    assert chosen.fetch_from == _from(B) and chosen.terms_us[FETCH] == 50_000 + 20 * SECOND // 11 and chosen.terms_us[LINK] == 12 * SECOND


def test_what_a_peer_charges_counts_by_the_priority_of_the_job() -> None:
    fleet = _fleet(_link(B, A, gbs=10, usd=0.01))
    assert [_at_a(fleet, priority=one).terms_us[LINK] for one in (Priority.URGENT, Priority.BATCH)] == [2_400_000, 60_000_000]


def test_the_own_links_of_both_sites_bound_a_peer_flow() -> None:
    sites = tuple(replace(one, wan_bytes_per_s=2 * GB if one.site_id == A else one.wan_bytes_per_s) for one in _sites())
    assert _at_a(_fleet(_link(B, A, gbs=10, rtt_ms=0), sites=sites)).terms_us[FETCH] == 10 * SECOND
    sites = tuple(replace(one, wan_bytes_per_s=4 * GB if one.site_id == B else one.wan_bytes_per_s) for one in _sites())
    assert _at_a(_fleet(_link(B, A, gbs=10, rtt_ms=0), sites=sites)).terms_us[FETCH] == 4 * SECOND


def test_a_peer_serves_while_it_speaks_and_says_where() -> None:
    fleet = _fleet(_link(B, A))
    assert _at_a(fleet).fetch_from == _from(B)
    fleet.wait(7, reporting=("a", "c"))  # b is silent
    assert _at_a(fleet).fetch_from is None
    fleet.report("b")
    assert _at_a(fleet).fetch_from == _from(B)
    fleet.ask(events.SiteCordoned, actor="t", reason="r", site_id=B)
    assert _at_a(fleet).fetch_from == _from(B)  # its disks can be read all the same
    fleet.ask(events.SiteDrainRequested, actor="t", reason="r", site_id=B, deadline_ms=60_000)
    assert _at_a(fleet).fetch_from == _from(B)
    _apply(fleet, sites=tuple(replace(one, weights_url="") for one in _sites() if one.site_id == B))
    assert _at_a(fleet).fetch_from is None


def test_a_peer_that_lost_the_weights_or_was_removed_is_no_source() -> None:
    fleet = _fleet(_link(B, A), _link(C, A, gbs=1.5), having=(B, C))
    fleet.agents[B].disk = set()
    fleet.report("b")
    assert _at_a(fleet).fetch_from == _from(C)
    fleet.ask(events.SiteRemoveRequested, actor="t", reason="r", site_id=C, force=True)
    assert _at_a(fleet).fetch_from is None


def test_weights_in_host_memory_only_are_not_served() -> None:
    fleet = _fleet(_link(B, A), having=())
    fleet.agents[B].host = {"p-0": {"m"}}
    fleet.report("b")
    assert _at_a(fleet).fetch_from is None


def test_twins_and_real_sites_give_nothing_to_each_other() -> None:
    fleet = _fleet(_link(B, A))
    fleet.connect(_sites()[1], SiteRuntime.TWIN)
    assert fleet.machine.context.columns.peers.of(ModelId("m")) == [B]
    assert _at_a(fleet).fetch_from is None


def test_a_snapshot_of_the_assignment_names_the_peer_only_while_it_can_be_read() -> None:
    fleet = _fleet(_link(B, A))
    fleet.submit(spec(constraints=AT_A))
    fleet.wait(7, reporting=("a", "c"))
    fleet.connect(_sites()[0])
    (assigned,) = fleet.agents[A].attempts.values()
    assert assigned.fetch_from is None


def test_a_copy_ahead_of_demand_comes_from_where_it_is_nearest() -> None:
    fleet = _fleet(_link(B, A))
    fleet.ask(events.ModelPinned, actor="t", reason="r", model_id=ModelId("m"), site_id=A, tier=Tier.DISK)
    (wanted,) = fleet.agents[A].wanted.values()
    assert wanted.fetch_from == _told(B)
    column = fleet.machine.context.columns.by_pool[A, pool("p").pool_id]
    assert column.pool.nodes[0].fetching[ModelId("m")] == fleet.now_us + BOTH_US
    again = restore(fleet.machine.snapshot(), fleet.policy, GPUS)
    assert again.snapshot() == fleet.machine.snapshot()
    (kept,) = again.context.state.sites[A].wanted.values()
    assert kept.fetch_from == _from(B)


def test_a_peer_flow_shares_the_way_with_the_others_of_the_site() -> None:
    fleet = Fleet(*_sites(), models=(model("m", 20), model("other", 30)))
    _apply(fleet, _link(B, A))
    fleet.agents[B].disk = {"m"}
    fleet.report("b")
    fleet.submit(spec("other", constraints=AT_A))
    assert _at_a(fleet).terms_us[FETCH] == 2 * BOTH_US


def test_what_came_from_a_peer_teaches_nothing_of_the_origin_store() -> None:
    fleet = _fleet(_link(B, A))
    fleet.submit(spec(constraints=AT_A))
    (key,) = fleet.agents[A].attempts
    times = PhaseTimes(waiting_us=0, fetch_us=90 * SECOND, load_us=9 * SECOND, run_us=9 * SECOND, upload_us=100_000)
    fleet.end_attempt("a", key, AttemptState.SUCCEEDED, after_us=110 * SECOND, times=times)
    book = fleet.machine.context.book
    assert not any(book.components[Component.FETCH].tables.values())
    assert any(book.components[Component.LOAD].tables.values()) and any(book.components[Component.PEER].tables.values())


def test_peers_that_keep_disappointing_are_left_for_the_origin_store() -> None:
    fleet = _fleet(_link(B, A, rtt_ms=0))
    chosen = []
    for number in range(24):
        fleet.agents[A].warm, fleet.agents[A].disk = {}, set()
        fleet.report("a")
        fleet.submit(spec(constraints=AT_A, prompt=str(number)))
        (key,) = fleet.agents[A].attempts
        explanation = fleet.job(key.job_id).attempts[0].explanation
        assert explanation is not None
        chosen.append(explanation.chosen.fetch_from)
        took_s = 45 if chosen[-1] == _from(B) else 20  # 7 s were predicted: the peer refuses, and the origin store gives it after all
        times = PhaseTimes(waiting_us=0, fetch_us=took_s * SECOND, load_us=9 * SECOND, run_us=9 * SECOND, upload_us=100_000)
        fleet.end_attempt("a", key, AttemptState.SUCCEEDED, after_us=120 * SECOND, times=times)
        for name in ("a", "b", "c"):
            fleet.report(name)
    assert chosen[0] == _from(B) and chosen[-1] is None
    assert _at_a(fleet).terms_us[FETCH] == pytest.approx(20 * SECOND, rel=0.1)


def test_a_snapshot_knows_the_same_sources_and_goes_on_with_equal_steps() -> None:
    fleet = _fleet(_link(B, A), _link(C, A, gbs=1.5), having=(B, C))
    fleet.submit(spec(constraints=AT_A))
    again = restore(fleet.machine.snapshot(), fleet.policy, GPUS)
    fleet.agents[B].disk = set()
    fleet.report("b")
    fleet.submit(spec("m", constraints=AT_A, prompt="another"))
    for at_us, event in fleet.recording[-2:]:
        step = again.handle(event, at_us)
        assert step == fleet.steps[fleet.recording.index((at_us, event))]


def test_a_fetch_that_only_the_site_knows_of_takes_what_its_source_gives() -> None:
    fleet = _fleet(_link(B, A))
    fleet.submit(spec(constraints=AT_A))
    agent = fleet.agents[A]
    column = fleet.machine.context.columns.by_pool[A, pool("p").pool_id]
    attempts.forget_fetch(fleet.machine.context, column, 0, ModelId("m"))  # as in a new incarnation, which knows attempts and no fetches
    told = FetchFact(model_id=ModelId("m"), bytes_done=10 * GB, bytes_total=20 * GB)
    facts = replace(fleet._node(agent, agent.site.pools[0], 0, fleet.now_us), fetching=(told,))
    agent.report_seq += 1
    report = SiteReport(seq=agent.report_seq, full=True, generation=agent.told[-1].generation, nodes=(facts,))
    fleet.happen(events.SiteReported(site_id=A, session=agent.session, report=report))
    assert column.pool.nodes[0].fetching[ModelId("m")] - fleet.now_us == BOTH_US // 2
