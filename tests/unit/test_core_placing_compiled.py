"""Compiled code in placing: a pool whose nodes hold it is preferred, by the seconds that compiling takes."""

from __future__ import annotations

from dataclasses import replace

from atoll.model.compiled import form_of
from atoll.model.ids import SiteId
from atoll.model.learned import Component
from atoll.model.modelspec import ModelSpec
from atoll.model.placement import Candidate, Explanation
from atoll.model.shape import Shape
from atoll.physics.coldstart import artifact_load_us, compile_us
from orchestrator.core import events
from orchestrator.core.machine import restore
from orchestrator.core.placement.policy import ALL_TERMS, Policy
from orchestrator.core.placement.registry import TERM_NAMES
from tests.unit.fleet_of_machines import GPUS, Fleet, adapter, model, pool, site, spec

COMPILE = TERM_NAMES.index("compile")
MODEL = replace(model("m"), compiled=True)
GPU = GPUS[pool("p").gpu_type]
WHOLE_US, CACHED_US = compile_us(MODEL, GPU), artifact_load_us(MODEL, GPU)
# Corrections would learn from what the tests' agents never measured.
PLAIN = Policy(learning=False)


def _fleet(*, nodes: int = 1, one: ModelSpec = MODEL, warm: bool = True, policy: Policy = PLAIN) -> Fleet:
    """Sites a and b, alike but for what their nodes hold."""
    fleet = Fleet(site("a", pool("p", nodes=nodes)), site("b", pool("p", nodes=nodes)), models=(one,), policy=policy)
    for name in "ab":
        for node in range(nodes) if warm else ():
            fleet.warm(name, f"p-{node}", 0, "m")
        fleet.report(name)
    return fleet


def _hold(fleet: Fleet, name: str, *nodes: int, shape: Shape | None = None, ranks: tuple[int, ...] = ()) -> None:
    form = form_of(MODEL, shape or spec().shape, ranks)
    fleet.agents[SiteId(name)].compiled = {f"p-{node}": {form} for node in nodes}
    fleet.report(name)


def _decided(fleet: Fleet, **changes: object) -> Explanation:
    before = set(fleet.jobs)
    fleet.submit(spec("m", **changes))
    (job_id,) = set(fleet.jobs) - before
    explanation = fleet.jobs[job_id].attempts[0].explanation
    assert explanation is not None
    for one in (explanation.chosen, *explanation.others):
        assert sum(one.terms_us) == one.total_us
    return explanation


def _at(explanation: Explanation, name: str, *, cold: bool) -> Candidate:
    return next(one for one in (explanation.chosen, *explanation.others) if one.site_id == name and one.cold is cold)


def test_a_pool_whose_nodes_hold_the_code_is_preferred() -> None:
    for holder, other in ("ab", "ba"):
        fleet = _fleet()
        _hold(fleet, holder, 0)
        decided = _decided(fleet)
        assert decided.chosen.site_id == holder and decided.chosen.terms_us[COMPILE] == 0
        assert _at(decided, other, cold=False).terms_us[COMPILE] == WHOLE_US
        assert _at(decided, holder, cold=True).terms_us[COMPILE] == CACHED_US
        assert _at(decided, other, cold=True).terms_us[COMPILE] == WHOLE_US


def test_where_some_nodes_hold_it_the_mean_is_expected() -> None:
    fleet = _fleet(nodes=4)
    _hold(fleet, "b", 1)
    decided = _decided(fleet)
    assert decided.chosen.site_id == "b" and decided.chosen.terms_us[COMPILE] == WHOLE_US * 750 // 1_000
    assert _at(decided, "b", cold=True).terms_us[COMPILE] == WHOLE_US * 750 // 1_000 + CACHED_US * 250 // 1_000


def test_sites_that_share_code_expect_to_read_what_another_of_their_gpu_type_holds() -> None:
    fleet = Fleet(site("a", pool("p")), site("b", pool("p")), site("c", pool("q", "small")), models=(MODEL,), policy=PLAIN)
    for name in "ab":
        fleet.warm(name, "p-0", 0, "m")
    fleet.warm("c", "q-0", 0, "m")
    for name in "ac":
        fleet.agents[SiteId(name)].shares_compiled = True
        fleet.report(name)
    _hold(fleet, "b", 0)
    assert _at(_decided(fleet), "a", cold=False).terms_us[COMPILE] == WHOLE_US, "b keeps to itself"
    fleet.agents[SiteId("b")].shares_compiled = True
    fleet.report("b")
    decided = _decided(fleet)
    assert _at(decided, "a", cold=False).terms_us[COMPILE] == CACHED_US == _at(decided, "a", cold=True).terms_us[COMPILE]
    assert _at(decided, "b", cold=False).terms_us[COMPILE] == 0
    assert _at(decided, "c", cold=False).terms_us[COMPILE] == WHOLE_US, "another GPU type runs other code"
    assert restore(fleet.machine.snapshot(), PLAIN, GPUS).snapshot() == fleet.machine.snapshot()


def test_a_mean_of_compiling_and_not_teaches_nothing() -> None:
    for holders, learned in (((), True), ((0,), False), ((0, 1), True)):
        fleet = _fleet(nodes=2)
        for name in "ab":
            _hold(fleet, name, *holders)
        fleet.submit(spec())
        (live,) = (live for one in fleet.machine.context.state.sites.values() for live in one.attempts.values())
        factor = live.factors_milli[list(Component).index(Component.COMPILE)]
        assert factor == (1_000 if learned else 0)


def test_code_for_another_shape_or_beside_other_adapters_does_not_help() -> None:
    fleet = _fleet()
    _hold(fleet, "b", 0, shape=replace(spec().shape, width=512))
    assert _decided(fleet).chosen.terms_us[COMPILE] == WHOLE_US
    fleet = _fleet()
    fleet.ask(events.AdaptersAdded, actor="t", adapters=(adapter("s", "m"),))
    _hold(fleet, "b", 0, ranks=(adapter("s").rank,))
    assert _decided(fleet).chosen.terms_us[COMPILE] == WHOLE_US


def test_code_that_comes_and_goes_is_noticed_by_classes_that_were_priced_before() -> None:
    fleet = _fleet()
    assert _decided(fleet).chosen.terms_us[COMPILE] == WHOLE_US
    version = fleet.machine.context.columns.version
    _hold(fleet, "b", 0)
    assert _at(_decided(fleet), "b", cold=False).terms_us[COMPILE] == 0
    _hold(fleet, "b")
    assert _at(_decided(fleet), "b", cold=False).terms_us[COMPILE] == WHOLE_US
    assert fleet.machine.context.columns.version == version, "estimates of everything else stood"


def test_a_model_that_runs_eager_a_gang_and_a_policy_without_the_term_pay_nothing() -> None:
    assert _decided(_fleet(one=model("m"))).chosen.terms_us[COMPILE] == 0
    assert _decided(_fleet(), gang_size=2).chosen.terms_us[COMPILE] == 0
    assert _decided(_fleet(policy=replace(PLAIN, terms=ALL_TERMS - {"compile"}))).chosen.terms_us[COMPILE] == 0


def test_it_is_part_of_what_is_predicted() -> None:
    with_code, without = _fleet(), _fleet()
    for name in "ab":
        _hold(with_code, name, 0)
    for fleet in (with_code, without):
        _decided(fleet)
    held_us, none_us = (next(iter(fleet.jobs.values())).attempts[0].predicted_us for fleet in (with_code, without))
    assert none_us - held_us == WHOLE_US


def test_what_nodes_hold_outlives_a_restart_of_the_brain_and_goes_with_the_site() -> None:
    fleet = _fleet(nodes=2)
    _hold(fleet, "b", 0)
    again = restore(fleet.machine.snapshot(), PLAIN, GPUS)
    assert again.snapshot() == fleet.machine.snapshot()
    form = form_of(MODEL, spec().shape)
    for machine in (fleet.machine, again):
        columns = machine.context.columns
        assert columns.code.share_milli(form, columns.columns).tolist() == [0, 500]
    fleet.agents[SiteId("b")].compiled = {}
    fleet.connect(replace(fleet.agents[SiteId("b")].site, pools=(pool("p", nodes=3),)))
    columns = fleet.machine.context.columns
    assert columns.code.share_milli(form, columns.columns).tolist() == [0, 0] and columns.code.version(form) == 0
