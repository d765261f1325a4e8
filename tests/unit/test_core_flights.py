"""Fetches under way as later decisions see them: by what has come and by how many share the way; what was predicted before stays."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model.attempt import Attempt, AttemptState, PhaseTimes
from atoll.model.ids import ModelId, SiteId
from atoll.model.learned import Component
from atoll.model.quote import Quote, Verdict
from atoll.model.report import FetchFact, SiteReport
from atoll.model.shape import Shape
from atoll.model.site import SiteRuntime
from orchestrator.core import events
from orchestrator.core.machine import Machine, restore
from orchestrator.core.placement.registry import TERM_NAMES
from tests.unit.fleet_of_machines import GB, GPUS, SECOND, Fleet, model, pool, site, spec

A = SiteId("a")
FETCH = TERM_NAMES.index("fetch")


def fleet_of_one() -> Fleet:
    """One site with two GPUs, whose way to the origin store gives 1 GB/s: 10 s for a model."""
    return Fleet(site("a", pool("p", gpus=2)), models=(model("m"), model("n")))


def push(fleet: Fleet, name: str) -> None:
    fleet.ask(events.ModelPushed, actor="t", reason="", model_id=name, sites=1, warm=0)


def come(fleet: Fleet, after_s: float, **done_gb: float) -> None:
    """The site tells, so much later, how much of each fetch is there."""
    agent = fleet.agents[A]
    told = tuple(
        FetchFact(model_id=ModelId(name), bytes_done=int(gb * GB), bytes_total=10 * GB, ahead=True) for name, gb in done_gb.items()
    )
    facts = replace(fleet._node(agent, agent.site.pools[0], 0, fleet.now_us), fetching=told)
    agent.report_seq += 1
    report = SiteReport(seq=agent.report_seq, full=False, generation=agent.told[-1].generation, nodes=(facts,))
    fleet.happen(events.SiteReported(site_id=A, session=agent.session, report=report), int(after_s * SECOND))


def left_us(fleet: Fleet, name: str = "m", machine: Machine | None = None) -> int:
    """What a job of the model would wait for its weights, if it came now."""
    found = (machine or fleet.machine).quote_job(spec(name, prompt="asked"), fleet.now_us)
    assert isinstance(found, Quote) and found.chosen is not None and found.chosen.cold
    return found.chosen.terms_us[FETCH]


def left_us_of_fetch(fleet: Fleet, name: str) -> int:
    """What is left of a fetch to the site's node."""
    (held,) = fleet.machine.context.state.sites[A].pools.values()
    return held.nodes[0].fetching[ModelId(name)] - fleet.now_us


def attempt_of(fleet: Fleet) -> Attempt:
    return list(fleet.jobs.values())[-1].attempts[0]


def test_who_would_join_a_fetch_waits_for_what_is_left_of_it_as_it_comes() -> None:
    fleet = fleet_of_one()
    push(fleet, "m")
    assert left_us(fleet) == 10 * SECOND
    come(fleet, 4, m=4)
    assert abs(left_us(fleet) - 6 * SECOND) < SECOND // 2, "it comes as was thought"
    come(fleet, 4, m=5)
    slow_us = left_us(fleet)
    assert 12 * SECOND < slow_us < 20 * SECOND, "what came lately took four times as long"
    come(fleet, 1, m=9)
    assert left_us(fleet) < SECOND, "and now it is fast"


def test_an_end_is_known_the_more_exactly_the_nearer_it_is() -> None:
    fleet = fleet_of_one()
    push(fleet, "m")
    come(fleet, 1, m=0.95)
    assert left_us(fleet) == 9 * SECOND, "a third of a second more or less tells nobody anything, nine seconds before"
    come(fleet, 8, m=8.8)
    assert SECOND < left_us(fleet) - SECOND // 10 < 2 * SECOND, "with a second left it does"
    come(fleet, 0.5, m=8.9)
    assert left_us(fleet) > SECOND, "and a move that is large counts at once"


def test_a_fetch_of_which_nothing_comes_is_neither_about_to_be_there_nor_never() -> None:
    fleet = fleet_of_one()
    push(fleet, "m")
    come(fleet, 5, m=5)
    waits = []
    for _ in range(40):
        come(fleet, 1, m=5)
        waits.append(left_us(fleet))
    assert all(0 < wait <= 40 * SECOND // 8 for wait in waits[10:]), waits
    assert waits[10:] == sorted(waits[10:])


def test_a_fetch_that_begins_on_the_same_way_slows_the_one_that_is_under_way_until_it_ends() -> None:
    fleet = fleet_of_one()
    push(fleet, "m")
    come(fleet, 4, m=4)
    alone_us = left_us(fleet)
    push(fleet, "n")
    assert abs(left_us(fleet) - 2 * alone_us) < SECOND // 10
    come(fleet, 0.5, m=4.25)  # the other is over, or was given up
    assert abs(left_us(fleet) - 5.75 * SECOND) < SECOND // 2


@pytest.mark.parametrize(("pushed", "each_s"), [("", 1), ("n", 2)], ids=["alone", "beside another fetch"])
def test_who_waits_for_a_flight_fetches_by_the_way_that_is_left_when_it_has_landed(pushed: str, each_s: int) -> None:
    """The origin store is ten times as quick as a neighbour, so the next node fetches too, instead of the flight that then is over."""
    quick = replace(site("a", pool("p", nodes=3, gpus=1), origin_gbs=10), wan_bytes_per_s=10 * GB, lan_bytes_per_s=GB)
    fleet = Fleet(quick, models=(model("m"), model("n")), runtime=SiteRuntime.TWIN)
    if pushed:
        push(fleet, pushed)
    began_us = fleet.now_us
    fleet.submit(spec(simulated=True, shape=Shape(width=1024, height=1024, steps=1_000)))
    found = fleet.machine.quote_job(spec(prompt="asked", simulated=True), fleet.now_us)
    assert isinstance(found, Quote) and found.chosen is not None and found.verdict is Verdict.WAITS
    assert abs(began_us + 2 * each_s * SECOND - fleet.now_us - found.chosen.terms_us[FETCH]) < SECOND // 100


def test_the_eta_of_who_waits_follows_and_what_was_predicted_for_it_stays() -> None:
    fleet = fleet_of_one()
    fleet.submit(spec())
    before = attempt_of(fleet)
    told = fleet.machine.eta_of(before.key.job_id, fleet.now_us)
    push(fleet, "n")
    later = fleet.machine.eta_of(before.key.job_id, fleet.now_us)
    assert told is not None and later is not None
    assert abs(later.end_p50_us - told.end_p50_us - 10 * SECOND) < SECOND // 10, "half of the way is another's now"
    assert attempt_of(fleet) == before


def test_jobs_that_fetch_beside_each_other_end_one_after_the_other() -> None:
    fleet = fleet_of_one()
    fleet.submit(spec("m"))
    fleet.submit(spec("n"))
    first, second = (job.attempts[0] for job in fleet.jobs.values())
    come(fleet, 4, m=2, n=2)
    assert 10 * SECOND < left_us_of_fetch(fleet, "m") < 20 * SECOND
    fleet.ask(events.JobCancelRequested, tenant=spec().tenant, job_id=first.key.job_id, reason="")
    fleet.end_attempt("a", first.key, AttemptState.STOPPED)
    assert abs(left_us_of_fetch(fleet, "n") - 8 * SECOND) < SECOND, "it has the way for itself"
    assert second.key in fleet.machine.context.state.sites[A].attempts


def test_a_job_that_joins_a_pushed_fetch_teaches_nothing_of_fetching() -> None:
    fleet = fleet_of_one()
    push(fleet, "m")
    come(fleet, 4, m=4)
    fleet.submit(spec())
    attempt = attempt_of(fleet)
    assert attempt.explanation is not None and attempt.explanation.chosen.terms_us[FETCH] > 5 * SECOND
    fleet.end_attempt("a", attempt.key, times=PhaseTimes(fetch_us=60 * SECOND, load_us=SECOND, run_us=SECOND))
    observations = {name: one.observations for name, one in fleet.machine.context.book.components.items()}
    assert (observations[Component.FETCH], observations[Component.LOAD]) == (0, 1)


def test_a_restored_core_goes_on_with_the_same_pace() -> None:
    fleet = fleet_of_one()
    push(fleet, "m")
    come(fleet, 4, m=2)
    again = restore(fleet.machine.snapshot(), fleet.policy, GPUS)
    assert again.snapshot() == fleet.machine.snapshot()
    assert left_us(fleet, machine=again) == left_us(fleet) > 10 * SECOND
