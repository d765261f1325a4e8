"""Placing in the core: where jobs go, when they wait, what is reserved and why."""

from __future__ import annotations

from collections import Counter

import pytest

from atoll.model.attempt import AttemptState
from atoll.model.ids import SiteId
from atoll.model.job import JobState
from atoll.model.quote import Quote
from orchestrator.core import events
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.registry import TERM_NAMES
from tests.unit.fleet_of_machines import BATCH, SECOND, URGENT, Fleet, model, pool, site, spec


def _places(fleet: Fleet) -> Counter[str]:
    return Counter(job.attempts[-1].site_id for job in fleet.jobs.values() if job.attempts)


def test_a_warm_replica_wins_over_a_faster_cold_gpu_when_loading_costs_more() -> None:
    fleet = Fleet(site("cold", pool("p", "big")), site("warm", pool("p", "small")))
    fleet.warm("warm", "p-0", 0, "m")
    fleet.report("warm")
    fleet.submit(spec())
    (job,) = fleet.jobs.values()
    assert job.attempts[0].site_id == "warm"
    assert not job.attempts[0].cold
    explanation = job.attempts[0].explanation
    assert explanation is not None
    cold = [other for other in explanation.others if other.site_id == "cold"]
    assert cold and all(other.total_us > explanation.chosen.total_us for other in cold)


def test_terms_add_up_to_the_total_of_every_candidate() -> None:
    fleet = Fleet(site("a"), site("b", pool("p", "small"), pool("q", "big")))
    fleet.submit(spec())
    (job,) = fleet.jobs.values()
    explanation = job.attempts[0].explanation
    assert explanation is not None and explanation.term_names == TERM_NAMES
    for candidate in (explanation.chosen, *explanation.others):
        assert sum(candidate.terms_us) == candidate.total_us
        assert all(term >= 0 for term in candidate.terms_us[:-1])


def test_weights_on_disk_are_preferred_to_a_fetch() -> None:
    fleet = Fleet(site("a"), site("b"))
    fleet.agents[SiteId("b")].disk = {"m"}
    fleet.report("b")
    fleet.submit(spec())
    (job,) = fleet.jobs.values()
    assert job.attempts[0].site_id == "b"


@pytest.mark.parametrize(
    ("used_milli", "prices_s"),
    [
        pytest.param(0, (0, 1, 1.333, 1.5), id="from the first, unless a policy says otherwise"),
        pytest.param(700, (0, 0, 0, 1.5), id="0.7: from the third"),
        pytest.param(500, (0, 0, 1.333, 1.5), id="what is reached and not exceeded costs nothing"),
    ],
)
def test_fetches_under_way_cost_a_tenth_of_their_delay_from_the_share_of_the_link_on_that_the_policy_says(
    used_milli: int, prices_s: tuple[float, ...]
) -> None:
    """20 GB over 1 GB/s beside no, one, two and three others."""
    found = []
    for flows in range(len(prices_s)):
        fleet = Fleet(site("a", pool("p", gpus=1)), models=(model("m", 20),), policy=Policy(link_used_milli=used_milli))
        fleet.machine.context.state.sites[SiteId("a")].fetches = flows
        fleet.machine.context.columns.flows_changed(fleet.machine.context.state.sites[SiteId("a")])
        offer = fleet.machine.quote_job(spec(), fleet.now_us)
        assert isinstance(offer, Quote) and offer.chosen is not None
        assert offer.chosen.terms_us[TERM_NAMES.index("fetch")] == 20 * SECOND * (1 + flows)
        found.append(offer.chosen.terms_us[TERM_NAMES.index("link")] / SECOND)
    assert found == pytest.approx(prices_s, abs=0.001)


def test_a_burst_is_spread_by_reservations_although_reports_are_stale() -> None:
    fleet = Fleet(*(site(name, pool("p", gpus=4)) for name in "abcdef"))
    fleet.submit(*(spec(prompt=str(number)) for number in range(24)))
    places = _places(fleet)
    assert len(places) == 6, places
    assert max(places.values()) <= 8


def test_a_job_waits_for_a_busy_warm_replica_rather_than_load_for_longer() -> None:
    fleet = Fleet(site("far", origin_gbs=1), site("warm", pool("p", gpus=1)), models=(model("m", weights_gb=60),))
    fleet.warm("warm", "p-0", 0, "m", size_gb=60)
    fleet.report("warm")
    for number in range(4):
        fleet.submit(spec(prompt=str(number)))
    places = _places(fleet)
    assert places == {"warm": 2}
    waiting = [job for job in fleet.jobs.values() if job.state is JobState.QUEUED]
    assert len(waiting) == 2
    assert waiting[0].deferral is not None and waiting[0].deferral.waits_for is not None
    assert waiting[0].deferral.waits_for.site_id == "warm"
    first = next(iter(fleet.agents[SiteId("warm")].attempts))
    fleet.end_attempt("warm", first)
    assert _places(fleet) == {"warm": 3}


def test_when_too_many_wait_for_a_warm_replica_the_last_ones_go_cold() -> None:
    fleet = Fleet(site("cold", pool("p", gpus=8)), site("warm", pool("p", gpus=1)), models=(model("m", weights_gb=2),))
    fleet.warm("warm", "p-0", 0, "m", size_gb=2)
    fleet.report("warm")
    fleet.submit(*(spec(prompt=str(number)) for number in range(40)))
    assert _places(fleet)["cold"] >= 4


def test_evictions_take_the_longest_idle_and_no_more_than_needed() -> None:
    fleet = Fleet(site("a", pool("p", "small", gpus=1)), models=(model("m"), model("x", 8), model("y", 8)))
    fleet.submit(spec("x"))
    (key,) = fleet.agents[SiteId("a")].attempts
    fleet.warm("a", "p-0", 0, "x", 8)
    fleet.end_attempt("a", key)
    fleet.report("a", after_us=1_000_000)
    fleet.submit(spec("y"))
    (key,) = fleet.agents[SiteId("a")].attempts
    assert fleet.agents[SiteId("a")].attempts[key].evict == ()
    fleet.warm("a", "p-0", 0, "y", 8)
    fleet.end_attempt("a", key)
    fleet.report("a", after_us=1_000_000)
    fleet.submit(spec("m"))
    (attempt,) = fleet.agents[SiteId("a")].attempts.values()
    assert attempt.evict == ("x",)


def test_urgent_goes_before_normal_before_batch() -> None:
    fleet = Fleet(site("a", pool("p", gpus=1)))
    fleet.submit(spec(), spec(prompt="2"))
    fleet.submit(spec(prompt="batch", priority=BATCH))
    fleet.submit(spec(prompt="normal"))
    fleet.submit(spec(prompt="urgent", priority=URGENT))
    order = []
    for _ in range(5):
        key = next(iter(fleet.agents[SiteId("a")].attempts))
        order.append(fleet.jobs[key.job_id].spec.prompt)
        fleet.warm("a", "p-0", 0, "m")
        fleet.end_attempt("a", key)
        fleet.report("a")
    assert order[2:] == ["urgent", "normal", "batch"]


def test_nothing_is_placed_before_the_first_report_nor_after_the_stream_ended() -> None:
    fleet = Fleet(site("a"))
    agent = fleet.agents[SiteId("a")]
    fleet.happen(events.SiteDisconnected(site_id=SiteId("a"), session=agent.session))
    fleet.submit(spec())
    (job,) = fleet.jobs.values()
    assert job.state is JobState.QUEUED
    fleet.connect(agent.site)
    assert fleet.jobs[job.job_id].state is JobState.PLACED


def test_a_refusal_is_a_fact_to_replan_with() -> None:
    fleet = Fleet(site("a"), site("b"))
    fleet.submit(spec())
    (job,) = fleet.jobs.values()
    first = job.attempts[0]
    from atoll.model.attempt import FailureKind

    fleet.end_attempt(first.site_id, first.key, AttemptState.REFUSED, FailureKind.REFUSED)
    fleet.wait(1, reporting=("a", "b"))
    second = fleet.jobs[job.job_id].attempts[-1]
    assert second.key.ordinal == 2 and second.site_id != first.site_id


def test_a_site_that_nobody_spoke_for_yet_is_not_connected_whatever_the_job_wants() -> None:
    fleet = Fleet(site("a"))
    fleet.ask(events.SitesApplied, actor="t", reason="", sites=(site("never"),), links=())
    fleet.submit(spec(simulated=True))
    (job,) = fleet.jobs.values()
    assert job.deferral is not None
    assert {one.reason: one.pools for one in job.deferral.rejections} == {"real_site": 1, "not_connected": 1}


def test_a_job_behind_another_of_its_kind_is_told_the_same_reasons() -> None:
    fleet = Fleet(site("a"), models=(model("m"), model("huge", weights_gb=500)))
    fleet.submit(spec("huge"), spec("huge", prompt="2"))
    first, second = fleet.jobs.values()
    assert second.deferral is None
    assert fleet.machine.deferral_of(second.job_id) == first.deferral is not None
