"""Which node of a pool is meant: room and weights are weighed together, a pin closes no more than itself, copies stay in the site."""

from __future__ import annotations

from dataclasses import replace

from atoll.model.assignment import Sources
from atoll.model.ids import AdapterId, ModelId, SiteId
from atoll.model.job import Constraints, JobState
from atoll.model.modelspec import AdapterUse
from atoll.model.quote import Quote, Verdict
from atoll.model.replica import Tier
from atoll.model.site import SiteRuntime, SiteSpec
from orchestrator.core import events
from orchestrator.core.machine import restore
from orchestrator.core.placement.registry import TERM_NAMES
from tests.unit.fleet_of_machines import GB, GPUS, Fleet, adapter, model, pool, site, spec

_FETCH, _EVICT = TERM_NAMES.index("fetch"), TERM_NAMES.index("evict")


def _pin(fleet: Fleet, name: str, where: str = "a") -> None:
    fleet.ask(events.ModelPinned, actor="t", reason="r", model_id=ModelId(name), site_id=SiteId(where), tier=Tier.GPU)


def _node_of(fleet: Fleet, name: str) -> str:
    (job,) = (job for job in fleet.jobs.values() if job.spec.model_id == name)
    return job.attempts[-1].slot.node_id


def test_an_empty_node_with_the_weights_goes_before_one_where_a_popular_model_would_have_to_leave() -> None:
    fleet = Fleet(site("a", pool("p", nodes=8, gpus=1)), models=(model("m", 30), model("big", 70)))
    fleet.warm("a", "p-0", 0, "big", 70)
    fleet.agents[SiteId("a")].disk = {"big", "m"}
    fleet.report("a")
    for number in range(5):
        fleet.submit(spec("big", prompt=str(number)))
        fleet.end_attempt("a", list(fleet.agents[SiteId("a")].attempts)[-1], after_us=1_000_000)
        fleet.report("a")
    fleet.submit(spec("m"))
    (job,) = (job for job in fleet.jobs.values() if job.spec.model_id == "m")
    explanation = job.attempts[0].explanation
    assert explanation is not None and explanation.evicted == () and job.attempts[0].slot.node_id != "p-0"
    assert explanation.chosen.terms_us[_EVICT] == explanation.chosen.terms_us[_FETCH] == 0


def test_a_node_that_is_pinned_full_leaves_the_others_to_whom_needs_them() -> None:
    fleet = Fleet(site("a", pool("p", nodes=2, gpus=1)), models=(model("m", 30), model("big", 70)))
    fleet.warm("a", "p-0", 0, "big", 70)
    fleet.agents[SiteId("a")].disk = {"m"}
    fleet.report("a")
    _pin(fleet, "big")
    fleet.submit(spec("m"))
    assert _node_of(fleet, "m") == "p-1"


def test_of_slots_with_pinned_replicas_the_one_where_enough_can_leave_is_found() -> None:
    fleet = Fleet(site("a", pool("p", gpus=2)), models=(model("m", 40), model("big", 60), model("small", 5), model("idle", 60)))
    fleet.warm("a", "p-0", 0, "big", 60)
    fleet.warm("a", "p-0", 1, "small", 5)
    fleet.warm("a", "p-0", 1, "idle", 60)
    fleet.report("a")
    _pin(fleet, "big")
    _pin(fleet, "small")
    fleet.submit(spec("m"))
    (job,) = (job for job in fleet.jobs.values() if job.spec.model_id == "m")
    assert job.state is JobState.PLACED and job.attempts[0].slot.index == 1
    explanation = job.attempts[0].explanation
    assert explanation is not None and [gone.model_id for gone in explanation.evicted] == ["idle"]


def _slow_origin(nodes: int) -> SiteSpec:
    """Thirty seconds from the origin, three within the site."""
    return replace(site("a", pool("p", nodes=nodes, gpus=1)), lan_bytes_per_s=10 * GB)


def test_one_node_fetches_and_the_others_of_the_site_copy_from_it() -> None:
    fleet = Fleet(_slow_origin(3), models=(model("m", 30),), runtime=SiteRuntime.TWIN)
    fleet.submit(*(spec("m", prompt=str(number), shape=replace(spec().shape, steps=1_000), simulated=True) for number in range(3)))
    attempts = list(fleet.agents[SiteId("a")].attempts)
    nodes = fleet.machine.context.state.sites[SiteId("a")].pools
    assert sum(len(node.fetching) for found in nodes.values() for node in found.nodes) == 1, "one flight per model and site"
    first = fleet.job(attempts[0].job_id).attempts[0]
    fleet.agents[SiteId("a")].disk_of = {first.slot.node_id: {"m"}}
    fleet.warm("a", first.slot.node_id, 0, "m", 30)
    fleet.wait(31, reporting=("a",))
    copies = [job.attempts[-1] for job in fleet.jobs.values() if job.attempts and job.attempts[-1].slot.node_id != first.slot.node_id]
    assert copies
    fetches_us = [attempt.explanation.chosen.terms_us[_FETCH] for attempt in copies if attempt.explanation is not None]
    assert len(fetches_us) == len(copies) == 2
    assert fetches_us[0] <= 3_100_000
    assert fetches_us[0] * 2 - 100_000 <= fetches_us[1] <= 6_100_000, "two copies share the way between the nodes"
    assert fleet.machine.context.state.sites[SiteId("a")].fetches <= 1, "copies take nothing of the way to the origin"
    assert restore(fleet.machine.snapshot(), fleet.policy, GPUS).snapshot() == fleet.machine.snapshot()


def test_a_node_that_the_origin_store_serves_sooner_than_its_neighbour_is_told_to_fetch_from_there() -> None:
    quick = replace(site("a", pool("p", nodes=4, gpus=1), origin_gbs=10), lan_bytes_per_s=GB, wan_bytes_per_s=10 * GB)
    fleet = Fleet(quick, models=(model("m", 30),), runtime=SiteRuntime.TWIN)
    fleet.agents[SiteId("a")].disk_of = {"p-0": {"m"}}
    fleet.report("a")
    fleet.submit(*(spec("m", prompt=str(number), shape=replace(spec().shape, steps=1_000), simulated=True) for number in range(4)))
    attempts = [job.attempts[0] for job in fleet.jobs.values()]
    fetches_us = sorted(attempt.explanation.chosen.terms_us[_FETCH] for attempt in attempts if attempt.explanation is not None)
    assert fetches_us == [0, 3_000_000, 6_000_000, 9_000_000], "each counts those before it, and none takes the 30 s of a copy"
    told = {assigned.slot.node_id: assigned.fetch_from for assigned in fleet.agents[SiteId("a")].attempts.values()}
    assert told == {"p-0": None} | dict.fromkeys(("p-1", "p-2", "p-3"), Sources(peers=(), origin_too=True))
    known = fleet.machine.context.state.sites[SiteId("a")]
    assert (known.fetches, known.copies) == (3, 0)
    assert restore(fleet.machine.snapshot(), fleet.policy, GPUS).snapshot() == fleet.machine.snapshot()


def test_a_copy_ahead_of_demand_comes_from_where_it_is_there_sooner() -> None:
    for lan_gbs, told in ((1, Sources(peers=(), origin_too=True)), (20, None)):
        quick = replace(site("a", pool("p", nodes=1, gpus=1), pool("q", nodes=1, gpus=1), origin_gbs=10), lan_bytes_per_s=lan_gbs * GB)
        fleet = Fleet(replace(quick, wan_bytes_per_s=10 * GB), models=(model("m", 30), model("big", 70)), runtime=SiteRuntime.TWIN)
        fleet.agents[SiteId("a")].disk_of = {"p-0": {"m"}}
        fleet.warm("a", "p-0", 0, "big", 70)
        fleet.report("a")
        _pin(fleet, "big")
        _pin(fleet, "m")
        (wanted,) = (one for one in fleet.agents[SiteId("a")].wanted.values() if one.model_id == "m")
        assert (wanted.node_id, wanted.fetch_from) == ("q-0", told)
        known = fleet.machine.context.state.sites[SiteId("a")]
        assert (known.fetches, known.copies) == ((1, 0) if told else (0, 1))


def test_nodes_of_a_real_site_do_not_copy_and_each_fetches_for_itself() -> None:
    fleet = Fleet(_slow_origin(2), models=(model("m", 30),))
    fleet.agents[SiteId("a")].disk_of = {"p-0": {"m"}}
    fleet.warm("a", "p-0", 0, "m", 30)
    fleet.report("a")
    long = replace(spec().shape, steps=100_000)
    fleet.submit(*(spec("m", prompt=str(number), shape=long) for number in range(2)))
    (cold,) = [attempt for job in fleet.jobs.values() for attempt in job.attempts if attempt.cold]
    assert cold.explanation is not None and cold.explanation.chosen.terms_us[_FETCH] > 25_000_000
    assert fleet.machine.context.state.sites[SiteId("a")].fetches == 1


def test_a_price_limit_is_held_against_what_each_place_would_cost() -> None:
    fleet = Fleet(site("warm", pool("p", "big", gpus=1)), site("cold", pool("p", "small", gpus=1)))
    fleet.warm("warm", "p-0", 0, "m")
    fleet.report("warm")
    offer = fleet.machine.quote_job(spec(), fleet.now_us)
    assert isinstance(offer, Quote) and offer.chosen is not None and offer.chosen.site_id == "warm"
    limit = offer.gpu_usd_micros + offer.egress_usd_micros + 10
    limited = spec(constraints=Constraints(max_price_usd_micros=limit))
    again = fleet.machine.quote_job(limited, fleet.now_us)
    assert isinstance(again, Quote) and again.chosen is not None and again.chosen.site_id == "warm"
    none = fleet.machine.quote_job(spec(constraints=Constraints(max_price_usd_micros=1)), fleet.now_us)
    assert isinstance(none, Quote) and none.verdict is Verdict.NEVER
    assert {one.reason.value for one in none.rejections} == {"price_too_high"}


def test_adapters_take_memory() -> None:
    fleet = Fleet(site("a", pool("p", "small", gpus=1)), site("b", pool("p", "big", gpus=1)), models=(model("m", 18),))
    large = replace(adapter("s1", "m"), weights_bytes=10 * GB)
    fleet.ask(events.AdaptersAdded, actor="t", adapters=(large,))
    fleet.submit(spec(adapters=(AdapterUse(adapter_id=AdapterId("s1")),)))
    (job,) = fleet.jobs.values()
    assert job.attempts[0].site_id == "b"
    explanation = job.attempts[0].explanation
    assert explanation is not None and {one.reason.value: one.pools for one in explanation.rejections} == {"memory_too_small": 1}


def test_a_fetch_of_years_is_late_and_not_early_however_many_share_the_way() -> None:
    slow = replace(site("a", pool("p", gpus=1)), origin_bytes_per_s=900)
    fleet = Fleet(slow, models=(model("m", 30),))
    fleet.machine.context.state.sites[SiteId("a")].fetches = 299
    fleet.machine.context.columns.flows_changed(fleet.machine.context.state.sites[SiteId("a")])
    offer = fleet.machine.quote_job(spec(deadline_ms=60_000), fleet.now_us)
    assert isinstance(offer, Quote) and offer.chosen is not None
    assert offer.chosen.terms_us[TERM_NAMES.index("deadline")] > 0
