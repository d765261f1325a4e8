"""A slot that is held while its model is fetched: that time costs money, can be lost, is in the price that is quoted, and has a limit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model.ids import SiteId
from atoll.model.job import Constraints, JobSpec, JobState
from atoll.model.placement import Candidate
from atoll.model.quote import Quote, Verdict
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.registry import TERM_NAMES
from tests.unit.fleet_of_machines import BATCH, SECOND, URGENT, Fleet, model, pool, site, spec

_USD_PER_S = 4.0 / 3_600


def _far(**changes: object) -> Fleet:
    """One GPU of $4 an hour; 60 GB come over a way of 50 MB/s, in twenty minutes."""
    one = replace(site("a", pool("p", gpus=1)), origin_bytes_per_s=50_000_000, **changes)  # type: ignore[arg-type]  # fields of SiteSpec
    fleet = Fleet(one, models=(model("m", 60), model("x", 2)), policy=Policy(silent_after_ms=10**9), checked=False)
    fleet.report("a")
    return fleet


def _quote(fleet: Fleet, job: JobSpec) -> Quote:
    quote = fleet.machine.quote_job(job, fleet.now_us)
    assert isinstance(quote, Quote)
    return quote


def _told_s(candidate: Candidate | None) -> dict[str, float]:
    assert candidate is not None
    return {name: us / SECOND for name, us in zip(TERM_NAMES, candidate.terms_us, strict=True)}


def test_money_risk_and_the_price_of_a_quote_count_the_fetch() -> None:
    fleet = _far(preemptions_per_million_gpu_hours=900_000)
    quote = _quote(fleet, spec())
    told = _told_s(quote.chosen)
    assert told["fetch"] == 1_200
    held_s = 1_200 + told["stage"] + told["init"] + told["execution"]
    assert told["money"] == pytest.approx(held_s * _USD_PER_S * 60, rel=1e-3)
    assert quote.gpu_usd_micros == pytest.approx(held_s * _USD_PER_S * 1e6, rel=1e-3)
    assert told["risk"] > 250, "some 26 % of such loads are lost on the way, half of the way spent"
    fleet.submit(spec())
    behind = _quote(fleet, spec("x")).chosen
    assert behind is not None and behind.wait_us / SECOND == pytest.approx(held_s, rel=0.01), "so long nobody else has the slot"


def test_a_place_is_too_dear_while_the_weights_are_far_and_no_more_when_they_have_come() -> None:
    fleet = _far()
    dear = _quote(fleet, spec())
    near_usd = (dear.gpu_usd_micros + dear.egress_usd_micros) // 4
    job = spec(constraints=Constraints(max_price_usd_micros=near_usd))
    refused = _quote(fleet, job)
    assert refused.verdict is Verdict.IMPOSSIBLE and refused.chosen is None
    assert [(one.reason.value, one.pools) for one in refused.rejections] == [("load_too_dear", 1)]
    fleet.submit(job)
    (waiting,) = fleet.jobs.values()
    assert waiting.state is JobState.QUEUED and waiting.deferral is not None
    assert [one.reason.value for one in waiting.deferral.rejections] == ["load_too_dear"]
    fleet.agents[SiteId("a")].disk.add("m")
    fleet.report("a")
    assert fleet.job(waiting.job_id).state is not JobState.QUEUED
    explanation = fleet.job(waiting.job_id).attempts[0].explanation
    assert explanation is not None and _told_s(explanation.chosen)["fetch"] == 0


def test_a_limit_that_a_busy_replica_meets_is_no_price_too_high() -> None:
    fleet = Fleet(site("a", pool("p", gpus=2), origin_gbs=1), models=(model("m", 60),), policy=Policy(slot_depth=1))
    fleet.warm("a", "p-0", 0, "m", 60)
    fleet.report("a")
    warm_usd = _quote(fleet, spec()).gpu_usd_micros
    fleet.submit(spec(prompt="first"))
    limited = _quote(fleet, spec(constraints=Constraints(max_price_usd_micros=warm_usd * 2)))
    assert limited.verdict is Verdict.WAITS and limited.chosen is not None and not limited.chosen.cold
    assert [one.reason.value for one in limited.rejections] == ["no_slot"]


def test_who_joins_a_flight_pays_for_what_is_left_of_it() -> None:
    fleet = Fleet(site("a", pool("p", gpus=2), origin_gbs=1), models=(model("m", 60),), policy=Policy(silent_after_ms=10**9))
    fleet.report("a")
    whole = _quote(fleet, spec())
    fleet.submit(spec(prompt="first"))
    fleet.now_us += 40 * SECOND
    joined = next(one for one in (_quote(fleet, spec()).chosen, *_quote(fleet, spec()).others) if one is not None and one.cold)
    saved_s = _told_s(whole.chosen)["money"] / 60 / _USD_PER_S - _told_s(joined)["money"] / 60 / _USD_PER_S
    assert _told_s(joined)["fetch"] == pytest.approx(20, abs=0.1)
    assert saved_s == pytest.approx(40, abs=0.1)


def test_what_breaks_a_block_weighs_less_for_urgent_work_as_all_does_that_others_lose() -> None:
    fleet = Fleet(site("gangs", pool("g", gpus=2)), models=(model("m"), model("x")), policy=Policy(silent_after_ms=10**9))
    fleet.warm_gang("gangs", "g-0", 0, 2, "x")
    fleet.report("gangs")
    asked = (spec("m", priority=one) for one in (spec().priority, URGENT, BATCH))
    normal, urgent, batch = (_told_s(_quote(fleet, one).chosen)["fragmentation"] for one in asked)
    assert normal > 0
    assert [urgent, batch] == pytest.approx([normal / 5, normal * 5], rel=1e-3)
