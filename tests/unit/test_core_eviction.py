"""Evictions in placing: what is pinned never leaves, what is asked for leaves last, the last copy counts more, further copies wait."""

from __future__ import annotations

from typing import Any

from atoll.model.ids import ModelId, SiteId
from atoll.model.job import JobState
from atoll.model.replica import Tier
from orchestrator.core import events
from orchestrator.core.machine import restore
from orchestrator.core.outputs import Done
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.registry import TERM_NAMES
from tests.unit.fleet_of_machines import GPUS, Fleet, model, pool, site, spec

_EVICT = TERM_NAMES.index("evict")
_CHURN = TERM_NAMES.index("churn")
# Of 80 GB: two of these do not fit beside each other.
_LARGE = 50


def _fleet(*names: str, gpus: int = 1) -> Fleet:
    models = tuple(model(name, _LARGE) for name in ("m", "n", "o", "p"))
    fleet = Fleet(*(site(name, pool("p", gpus=gpus)) for name in names), models=models)
    for name in names:
        fleet.agents[SiteId(name)].disk = {"m", "n", "o", "p"}
    return fleet


def _serve(fleet: Fleet, model_id: str, times: int) -> None:
    """Jobs of a model, one after the other, each to its end; residency looks at the demand in between."""
    for number in range(times):
        fleet.submit(spec(model_id, prompt=f"{model_id}{number}"))
        for name, agent in fleet.agents.items():
            for key in list(agent.attempts):
                fleet.end_attempt(name, key)
        fleet.wait(1, reporting=tuple(fleet.agents))


def test_a_pinned_replica_is_never_named_to_leave_and_who_needs_its_room_is_told_why_it_waits() -> None:
    fleet = _fleet("a")
    fleet.warm("a", "p-0", 0, "m", _LARGE)
    fleet.report("a")
    fleet.ask(events.ModelPinned, actor="t", reason="r", model_id=ModelId("m"), site_id=SiteId("a"), tier=Tier.GPU)
    fleet.submit(spec("n"))
    (job,) = fleet.jobs.values()
    assert job.state is JobState.QUEUED and job.deferral is not None
    assert [one.reason.value for one in job.deferral.rejections] == ["memory_busy"]
    fleet.ask(events.ModelUnpinned, actor="t", reason="r", model_id=ModelId("m"), site_id=SiteId("a"))
    fleet.wait(6, reporting=("a",))
    job = fleet.job(job.job_id)
    assert job.state is JobState.PLACED
    explanation = job.attempts[0].explanation
    assert explanation is not None and [gone.model_id for gone in explanation.evicted] == ["m"]


def test_a_model_that_is_asked_for_stays_and_one_that_nobody_wants_leaves() -> None:
    fleet = _fleet("a", "b")
    fleet.warm("a", "p-0", 0, "m", _LARGE)
    fleet.warm("b", "p-0", 0, "n", _LARGE)
    for name in "ab":
        fleet.report(name)
    _serve(fleet, "n", 2)
    _serve(fleet, "m", 40)
    fleet.submit(spec("o"))
    job = next(job for job in fleet.jobs.values() if job.spec.model_id == "o")
    explanation = job.attempts[0].explanation
    assert explanation is not None and explanation.chosen.site_id == "b"
    assert [gone.model_id for gone in explanation.evicted] == ["n"]
    other = next(one for one in explanation.others if one.site_id == "a" and one.cold)
    assert other.terms_us[_EVICT] > explanation.chosen.terms_us[_EVICT] > 0
    assert explanation.evicted[0].price_us == explanation.chosen.terms_us[_EVICT]


def test_the_price_of_a_copy_falls_with_the_number_of_copies_and_that_of_the_last_one_counts_more() -> None:
    prices = []
    for copies in (1, 2, 4):
        fleet = _fleet("a", gpus=4)
        for gpu in range(copies):
            fleet.warm("a", "p-0", gpu, "m", _LARGE)
        fleet.report("a")
        columns = fleet.machine.context.columns
        column = columns.columns[0]
        (replica,) = column.pool.nodes[0].slots[0].replicas.values()
        prices.append(columns.prices.price_us(replica, column.pool))
    one, two, four = prices
    # Half of the requests, and half of the time another has a slot to spare; the last one threefold; prices are rounded to an eighth.
    assert one > 9 * two and two > 3 * four > 0


def test_a_copy_beyond_the_target_is_handicapped_and_the_first_is_not() -> None:
    fleet = _fleet("a", "b")
    fleet.submit(spec("m"))
    (job,) = fleet.jobs.values()
    explanation = job.attempts[0].explanation
    assert explanation is not None and explanation.chosen.terms_us[_CHURN] == 0
    fleet.submit(*(spec("m", prompt=str(number)) for number in range(12)))
    later = [job.attempts[0].explanation for job in fleet.jobs.values() if job.attempts]
    cold = [one.terms_us[_CHURN] for found in later[1:] if found is not None for one in (found.chosen, *found.others) if one.cold]
    assert cold and all(cost > 0 for cost in cold)


def test_pushed_models_are_kept_though_nobody_asked_for_them_yet_and_a_restored_core_agrees() -> None:
    fleet = _fleet("a", "b", gpus=1)
    fleet.ask(events.ModelPushed, actor="t", reason="r", model_id=ModelId("m"), sites=1, warm=1)
    (warm,) = fleet.machine.context.state.pushes[ModelId("m")].warm
    fleet.warm(warm, "p-0", 0, "m", _LARGE)
    other = "b" if warm == "a" else "a"
    fleet.warm(other, "p-0", 0, "n", _LARGE)
    for name in "ab":
        fleet.report(name)
    again = restore(fleet.machine.snapshot(), fleet.policy, GPUS)
    for machine in (again, fleet.machine):
        columns = machine.context.columns
        prices = {
            column.site.site_id: columns.prices.price_us(replica, column.pool)
            for column in columns.columns
            for replica in column.pool.nodes[0].slots[0].replicas.values()
        }
        assert prices[SiteId(warm)] > prices[SiteId(other)] * 3 // 2
    fleet.submit(spec("o"))
    job = next(job for job in fleet.jobs.values() if job.spec.model_id == "o")
    assert job.attempts[0].site_id == other


def _with_one_copy(**policy: Any) -> Fleet:
    """One GPU, on which m is, and n has no room beside it."""
    fleet = Fleet(site("a", pool("p", gpus=1)), models=(model("m", 60), model("n", 60)), policy=Policy(silent_after_ms=10**9, **policy))
    fleet.agents[SiteId("a")].disk |= {"m", "n"}
    fleet.warm("a", "p-0", 0, "m", 60)
    fleet.report("a")
    return fleet


def _protected(fleet: Fleet) -> bool:
    ctx = fleet.machine.context
    return ctx.residency.protected(ctx, ModelId("m"), SiteId("a"))


def test_the_last_warm_copy_is_protected_while_the_model_is_asked_for_often_enough() -> None:
    told = {}
    for per_hour_milli in (1, 10**9):
        fleet = _with_one_copy(protect_per_hour_milli=per_hour_milli, spread_per_hour_milli=10**10)
        fleet.submit(spec("m"))
        (key,) = fleet.agents[SiteId("a")].attempts
        fleet.end_attempt("a", key)
        told[per_hour_milli] = _protected(fleet)
    assert told == {1: True, 10**9: False}, "whatever the rule for the top models says"


def test_the_last_warm_copy_of_a_pushed_model_is_protected_though_nobody_asked_for_it_yet() -> None:
    fleet = _with_one_copy()
    assert not _protected(fleet)
    assert isinstance(fleet.ask(events.ModelPushed, actor="t", reason="launch", model_id="m", sites=1, warm=1), Done)
    assert _protected(fleet)


def test_what_has_no_copy_has_none_to_protect() -> None:
    fleet = _with_one_copy()
    fleet.submit(spec("m"))
    (key,) = fleet.agents[SiteId("a")].attempts
    fleet.end_attempt("a", key)
    assert _protected(fleet)
    fleet.agents[SiteId("a")].warm.clear()
    fleet.report("a")
    assert not _protected(fleet)


def test_the_top_models_are_wanted_on_two_sites_though_no_copy_is_worth_its_memory() -> None:
    wanted = {}
    for per_hour_milli in (60_000, 10**10):
        policy = Policy(silent_after_ms=10**9, spread_per_hour_milli=per_hour_milli, residency_floor_us_per_hour=10**12)
        fleet = Fleet(*(site(name) for name in "abc"), models=(model("m"),), policy=policy)
        for _ in range(90):
            fleet.submit(spec("m"))
            for name, agent in fleet.agents.items():
                for key in list(agent.attempts):
                    slot = agent.attempts[key].slot
                    fleet.warm(name, slot.node_id, slot.index, "m")
                    agent.disk.add("m")
                    fleet.end_attempt(name, key)
            fleet.wait(2, reporting=tuple(fleet.agents))
        wanted[per_hour_milli] = fleet.machine.context.residency.target(ModelId("m"))
    assert wanted == {60_000: 2, 10**10: 0}
