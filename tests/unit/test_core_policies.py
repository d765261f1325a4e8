"""Every registered policy keeps the machine's promises; each baseline chooses as it says, and says that it did."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from atoll.model.ids import AdapterId, JobId, Ordinal, SiteId
from atoll.model.job import Constraints, Job, JobState
from atoll.model.modelspec import AdapterUse
from atoll.model.placement import Explanation
from atoll.model.site import LinkSpec, SiteRuntime, SiteSpec
from orchestrator.core import events
from orchestrator.core.machine import restore
from orchestrator.core.placement.choose import slots_of
from orchestrator.core.placement.classes import class_of
from orchestrator.core.placement.policies import POLICIES
from orchestrator.core.placement.policy import Policy, Rule
from orchestrator.core.placement.registry import TERM_NAMES
from orchestrator.core.placement.rows import Out, State
from orchestrator.core.placement.rules import RULES, Lot
from tests.unit.fleet_of_machines import BATCH, GB, GPUS, URGENT, Fleet, adapter, model, pool, site, spec

EVERY = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
MODELS = (model("m"), model("x", 14), model("huge", 500))


def _sites() -> tuple[SiteSpec, ...]:
    return (
        site("a", pool("p", gpus=2)),
        site("b", pool("q", "small", nodes=2, gpus=1), pool("r", "big", gpus=1), origin_gbs=2),
        site("c", pool("s", "small", gpus=3)),
    )


def _busy(policy: Policy) -> Fleet:
    """A fleet with warm replicas, weights on a disk, work in slots and a queue."""
    fleet = Fleet(*_sites(), models=MODELS, policy=policy)
    fleet.warm("b", "q-0", 0, "m")
    fleet.warm("a", "p-0", 1, "x", 14)
    fleet.agents[SiteId("c")].disk = {"m"}
    for name in "abc":
        fleet.report(name)
    fleet.submit(*(spec(name, prompt=str(number)) for number in range(3) for name in ("m", "x")))
    return fleet


def _finish(fleet: Fleet) -> None:
    """Every attempt succeeds, in the order of sites, until none is left."""
    for _ in range(200):
        keys = [(name, key) for name in sorted(fleet.agents) for key in fleet.agents[name].attempts]
        if not keys:
            return
        fleet.end_attempt(*keys[0], after_us=100_000)
        fleet.report(keys[0][0])
    raise AssertionError("work never ends")


def _explained(fleet: Fleet) -> list[Explanation]:
    told = [attempt.explanation for job in fleet.jobs.values() for attempt in job.attempts]
    return [one for one in told if one is not None]


def _only(fleet: Fleet) -> Job:
    (job,) = fleet.jobs.values()
    return job


def _went(fleet: Fleet) -> list[str]:
    """Sites in the order of decisions."""
    told = sorted((one.leased_us, job.job_id, one.site_id) for job in fleet.jobs.values() for one in job.attempts)
    return [place for _, _, place in told]


def _one_at_a_time(fleet: Fleet, count: int, model_id: str = "m") -> list[str]:
    """Where jobs go that find the fleet idle, one after the other."""
    for number in range(count):
        fleet.submit(spec(model_id, prompt=str(number)))
        _finish(fleet)
    return _went(fleet)


# --- what holds for all -----------------------------------------------------------------------------------------------------------


@EVERY
def test_a_policy_keeps_its_bounds_and_is_found_by_its_name(policy: Policy) -> None:
    assert policy.check() is policy
    assert POLICIES[policy.name] is policy
    assert set(RULES) | {Rule.COST} == set(Rule) == {one.rule for one in POLICIES.values()}


@EVERY
def test_only_rows_that_can_be_bound_are_chosen(policy: Policy) -> None:
    fleet = _busy(policy)
    ctx = fleet.machine.context
    for wanted in (spec("m"), spec("x"), spec("huge"), spec("m", gang_size=2), spec("x", priority=URGENT, deadline_ms=1_000)):
        key, known = class_of(wanted), ctx.state.models[wanted.model_id]
        for number in range(20):
            estimate = ctx.estimator.of(key, known)
            board = ctx.scorer.score(key, estimate, ctx.now_us, lot=Lot(JobId(f"j{number}"), Ordinal(1), ctx.state.last_place))
            possible = set(board.out[:, Out.STATE].tolist())
            assert (board.bound is not None) == (State.BINDABLE in possible)
            if board.bound is not None:
                assert board.out[board.bound, Out.STATE] == State.BINDABLE and slots_of(board, board.bound)
            if board.patient is not None:
                assert board.out[board.patient, Out.STATE] == State.WAITS
            assert board.bound is not None or board.patient is not None or State.WAITS not in possible


@EVERY
def test_the_same_history_leads_to_the_same_decisions(policy: Policy) -> None:
    assert _busy(policy).steps == _busy(policy).steps


@EVERY
def test_a_restored_snapshot_goes_on_with_equal_steps(policy: Policy) -> None:
    fleet = _busy(policy)
    twin = restore(fleet.machine.snapshot(), fleet.policy, GPUS)
    begun, taken = len(fleet.recording), len(fleet.steps)
    fleet.submit(*(spec(prompt=f"later {number}", priority=BATCH) for number in range(4)))
    _finish(fleet)
    for (now_us, event), step in zip(fleet.recording[begun:], fleet.steps[taken:], strict=True):
        assert twin.handle(event, now_us) == step
    assert twin.snapshot() == fleet.machine.snapshot()


@EVERY
def test_every_job_of_a_small_load_ends(policy: Policy) -> None:
    fleet = _busy(policy)
    fleet.submit(*(spec(name, prompt=str(number), priority=BATCH) for number in range(5) for name in ("m", "x")))
    _finish(fleet)
    assert Counter(job.state for job in fleet.jobs.values()) == {JobState.SUCCEEDED: 16}


@EVERY
def test_an_impossible_job_waits_and_says_why(policy: Policy) -> None:
    fleet = Fleet(*_sites(), models=MODELS, policy=policy)
    fleet.submit(spec("huge"))
    job = _only(fleet)
    assert job.state is JobState.QUEUED
    assert job.deferral is not None and sum(one.pools for one in job.deferral.rejections) == 4


@EVERY
def test_decisions_are_explained_in_seconds_and_name_the_rule(policy: Policy) -> None:
    explained = _explained(_busy(policy))
    assert explained
    for told in explained:
        assert (told.policy, told.rule, told.term_names) == (policy.name, policy.rule, TERM_NAMES)
        for candidate in (told.chosen, *told.others):
            assert sum(candidate.terms_us) == candidate.total_us


@EVERY
def test_jobs_with_adapters_end_by_replicas_that_have_them_and_by_others(policy: Policy) -> None:
    fleet = Fleet(*_sites(), models=MODELS, policy=policy)
    fleet.ask(events.AdaptersAdded, actor="t", adapters=(adapter("style", "m"),))
    styled = (AdapterUse(adapter_id=AdapterId("style")),)
    for number in range(3):
        fleet.submit(spec(prompt=str(number)), spec(prompt=f"styled {number}", adapters=styled))
    _finish(fleet)
    assert Counter(job.state for job in fleet.jobs.values()) == {JobState.SUCCEEDED: 6}


def test_five_hundred_jobs_against_stale_reports_do_not_land_on_one_site() -> None:
    fleet = Fleet(*(site(f"s{number:02}", pool("p", gpus=8)) for number in range(20)), checked=False)
    fleet.warm("s07", "p-0", 0, "m")
    fleet.report("s07")
    fleet.submit(*(spec(prompt=str(number)) for number in range(500)))
    places = Counter(job.attempts[-1].site_id for job in fleet.jobs.values() if job.attempts)
    assert len(places) == 20
    assert max(places.values()) <= 2 * 8, "no slot has more than one behind what it does"


@EVERY
def test_explanations_may_be_off(policy: Policy) -> None:
    explained = _explained(_busy(replace(policy, candidates_kept=0)))
    assert explained and all(not told.others for told in explained)


# --- each as it says --------------------------------------------------------------------------------------------------------------


def test_random_uses_every_place_and_its_seed_decides() -> None:
    sites = [site(name, pool("p", gpus=1)) for name in "abcdef"]
    first = _one_at_a_time(Fleet(*sites, policy=POLICIES["random"]), 60)
    assert set(first) == set("abcdef") and max(Counter(first).values()) < 25
    again = _one_at_a_time(Fleet(*sites, policy=replace(POLICIES["random"], seed=1)), 60)
    assert again != first


def test_chance_is_of_the_job_and_not_of_the_order_of_calls() -> None:
    fleet = Fleet(*(site(name, pool("p", gpus=1)) for name in "abcdef"), policy=POLICIES["random"])
    ctx = fleet.machine.context
    key = class_of(spec())
    lots = [Lot(JobId(f"j{number}"), Ordinal(1)) for number in range(30)]

    def drawn(lot: Lot) -> int | None:
        return ctx.scorer.score(key, ctx.estimator.of(key, ctx.state.models[key.model_id]), ctx.now_us, lot=lot).bound

    there = [drawn(lot) for lot in lots]
    assert [drawn(lot) for lot in reversed(lots)] == there[::-1]
    assert len(set(there)) == 6
    assert [drawn(lot._replace(ordinal=Ordinal(2))) for lot in lots] != there


def test_round_robin_goes_on_behind_the_last_place_and_over_those_that_are_gone() -> None:
    fleet = Fleet(*(site(name, pool("p", gpus=2)) for name in "abcd"), policy=POLICIES["round-robin"])
    assert _one_at_a_time(fleet, 5) == ["a", "b", "c", "d", "a"]
    fleet.ask(events.SiteCordoned, actor="t", reason="r", site_id=SiteId("b"))
    fleet.submit(*(spec(prompt=f"more {number}") for number in range(4)))
    assert _went(fleet)[5:] == ["c", "d", "a", "c"]


def test_least_loaded_takes_the_emptiest_by_share() -> None:
    fleet = Fleet(site("a", pool("p", gpus=4)), site("b", pool("p", gpus=1)), policy=POLICIES["least-loaded"])
    fleet.submit(*(spec(prompt=str(number)) for number in range(5)))
    assert Counter(_went(fleet)) == {"a": 4, "b": 1}
    fleet.submit(*(spec(prompt=f"more {number}") for number in range(5)))
    assert Counter(_went(fleet)) == {"a": 8, "b": 2}


def test_nearest_takes_the_site_of_the_asker_however_cold_it_is() -> None:
    fleet = Fleet(site("far"), site("near"), site("origin", pool("p", gpus=1)), policy=POLICIES["nearest"])
    links = tuple(
        LinkSpec(src=SiteId(place), dst=SiteId("origin"), rtt_us=rtt_us, bytes_per_s=GB)
        for place, rtt_us in (("far", 200_000), ("near", 20_000))
    )
    sites = tuple(agent.site for agent in fleet.agents.values())
    fleet.happen(events.SitesApplied(request=fleet.request(), actor="t", reason="", sites=sites, links=links))
    fleet.warm("far", "big-0", 0, "m")
    fleet.report("far")
    fleet.submit(*(spec(prompt=str(number), origin_site=SiteId("origin")) for number in range(4)))
    assert _went(fleet)[:2] == ["origin", "origin"], "one executes, one waits behind it"
    assert set(_went(fleet)[2:]) == {"near"}


def test_cheapest_takes_the_place_of_least_money_however_slow() -> None:
    fleet = Fleet(site("dear", pool("p", "big")), site("cheap", pool("p", "small")), policy=POLICIES["cheapest"])
    for place in ("dear", "cheap"):
        fleet.warm(place, "p-0", 0, "m")
        fleet.report(place)
    fleet.submit(spec())
    told = _explained(fleet)[0]
    quotes = {one.site_id: one.terms_us[TERM_NAMES.index("money")] for one in (told.chosen, *told.others) if not one.cold}
    assert told.chosen.site_id == min(quotes, key=lambda place: quotes[place])


def test_warm_first_takes_the_nearest_tier_although_a_cold_gpu_would_be_done_sooner() -> None:
    fleet = Fleet(
        site("cold", pool("p", "big", gpus=8), origin_gbs=1_000), site("disk", pool("p", "small")),
        site("warm", pool("p", "small", gpus=1)), models=(model("m", 1),), policy=POLICIES["warm-first"],
    )  # fmt: skip
    fleet.warm("warm", "p-0", 0, "m", 1)
    fleet.agents[SiteId("disk")].disk = {"m"}
    for name in ("warm", "disk"):
        fleet.report(name)
    fleet.submit(*(spec(prompt=str(number)) for number in range(3)))
    assert _went(fleet) == ["warm", "warm", "disk"]


@pytest.mark.parametrize("origin_gbs", [1, 20], ids=["neighbours are quicker", "the origin store is quicker than neighbours"])
def test_warm_first_takes_a_site_that_has_the_weights_at_another_node_also_where_they_come_from_elsewhere(origin_gbs: int) -> None:
    """Only the GPU beside the weights is busy, at both sites; a has more that are free."""
    sites = tuple(
        replace(site(name, pool("p", nodes=nodes, gpus=1), origin_gbs=gbs), lan_bytes_per_s=2 * GB)
        for name, nodes, gbs in (("a", 3, origin_gbs), ("b", 2, 1))
    )
    fleet = Fleet(*sites, models=MODELS, policy=POLICIES["warm-first"], runtime=SiteRuntime.TWIN)
    for one in sites:
        fleet.agents[one.site_id].disk_of["p-0"] = {"m", "x"}
        fleet.warm(one.site_id, "p-0", 0, "x", 14)
        fleet.report(one.site_id)
        fleet.submit(spec("x", prompt=one.site_id, simulated=True, constraints=Constraints(sites=(one.site_id,))))
    fleet.submit(spec("m", simulated=True))
    assert _went(fleet) == ["a", "b", "a"]


def test_load_time_only_ignores_the_speed_of_execution() -> None:
    def sites() -> tuple[SiteSpec, SiteSpec]:
        return site("fast", pool("p", "big")), site("slow", pool("p", "small"), origin_gbs=2)

    assert _one_at_a_time(Fleet(*sites(), policy=POLICIES["load-time-only"]), 1) == ["slow"]
    assert _one_at_a_time(Fleet(*sites(), models=(model("m", 1),)), 1) == ["fast"]


def test_load_time_only_waits_for_a_busy_replica_that_is_ready_sooner() -> None:
    def fleet(name: str) -> Fleet:
        made = Fleet(site("far"), site("warm", pool("p", gpus=1)), models=(model("m", weights_gb=60),), policy=POLICIES[name])
        made.warm("warm", "p-0", 0, "m", size_gb=60)
        made.report("warm")
        made.submit(*(spec(prompt=str(number)) for number in range(4)))
        return made

    waited, not_waited = fleet("load-time-only"), fleet("warm-first")
    assert Counter(_went(waited)) == {"warm": 2}
    assert Counter(_went(not_waited)) == {"warm": 2, "far": 2}
    (waiting, *_) = [job for job in waited.jobs.values() if job.deferral is not None]
    assert waiting.deferral is not None and waiting.deferral.waits_for is not None and waiting.deferral.waits_for.site_id == "warm"


def test_points_weigh_free_slots_against_locality_without_a_unit() -> None:
    fleet = Fleet(site("a", pool("p", gpus=4)), site("b", pool("p", gpus=4)), policy=POLICIES["points"])
    fleet.warm("a", "p-0", 0, "m")
    fleet.report("a")
    fleet.submit(*(spec("m", prompt=str(number)) for number in range(2)))
    # 100 free and loaded at a; then a busy replica, which counts as no free slot: 75 free and cold at a are fewer points than 100 at b.
    assert _went(fleet) == ["a", "b"]


def test_two_choices_balance_better_than_one() -> None:
    def spread(name: str) -> int:
        fleet = Fleet(*(site(f"s{number:02}", pool("p", gpus=16)) for number in range(12)), policy=POLICIES[name], checked=False)
        fleet.submit(*(spec(prompt=str(number)) for number in range(96)))
        counts = Counter(_went(fleet))
        return max(counts.values()) - min(counts[SiteId(f"s{number:02}")] for number in range(12))

    assert spread("two-choices") < spread("random")
