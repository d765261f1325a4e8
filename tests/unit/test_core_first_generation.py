"""The first generation of a process takes longer than the next: it is counted where it would be this job's, once, and only there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model.attempt import PhaseTimes
from atoll.model.ids import AdapterId, SiteId
from atoll.model.learned import Component
from atoll.model.modelspec import AdapterUse
from atoll.physics.coldstart import first_generation_us, init_us
from orchestrator.core import events
from orchestrator.core.placement.policies import DEFAULT
from tests.unit.fleet_of_machines import Fleet, adapter, model, pool, site
from tests.unit.test_core_learning import placed, term, work

FIRST_US = first_generation_us()
# Nobody reports in these tests while time passes.
CALM = replace(DEFAULT, silent_after_ms=10**9, lost_after_min_ms=10**9, lost_after_max_ms=10**9, hang_min_ms=10**9)


def fresh(fleet: Fleet, name: str, *gpus: int) -> None:
    """The processes of these slots have generated nothing yet; the site's agent says so."""
    fleet.agents[SiteId(name)].fresh = {("p-0", gpu) for gpu in gpus}
    fleet.report(name)


def alone(gpus: int = 1, *, warm: bool = True) -> Fleet:
    fleet = Fleet(site("a", pool("p", gpus=gpus)), policy=CALM)
    for gpu in range(gpus if warm else 0):
        fleet.warm("a", "p-0", gpu, "m")
    fresh(fleet, "a", *range(gpus))
    return fleet


def test_a_loaded_replica_of_a_new_process_takes_the_first_generation_longer_and_the_next_job_no_more() -> None:
    fleet = alone()
    first = placed(fleet)
    behind = placed(fleet)
    fleet.end_attempt("a", first.key)
    fleet.end_attempt("a", behind.key)
    later = placed(fleet)
    assert [term(one, "init") for one in (first, behind, later)] == [FIRST_US, 0, 0]
    assert [term(one, "stage") for one in (first, behind, later)] == [0, 0, 0]
    assert first.predicted_us - later.predicted_us == FIRST_US
    assert first.explanation is not None and first.explanation.chosen.total_us == sum(first.explanation.chosen.terms_us)
    assert term(behind, "queue") == pytest.approx(FIRST_US + term(first, "execution"), abs=10_000), "it waits for that too"


@pytest.mark.parametrize("gang_size", [1, 2])
def test_a_load_by_a_new_process_counts_both(gang_size: int) -> None:
    fleet = alone(2, warm=False)
    fresh(fleet, "a", 1, *range(2 - gang_size))  # of a gang one is enough: the others wait for it
    found = placed(fleet, gang_size=gang_size)
    assert term(found, "init") == init_us(model("m")) + FIRST_US
    assert found.explanation is not None and found.explanation.chosen.total_us == sum(found.explanation.chosen.terms_us)


def test_from_host_memory_the_saving_is_that_of_staging() -> None:
    known, new = alone(warm=False), alone(warm=False)
    for fleet in (known, new):
        fleet.agents[SiteId("a")].host = {"p-0": {"m"}}
    fresh(known, "a")
    fresh(new, "a", 0)
    told = [placed(fleet) for fleet in (known, new)]
    assert term(told[0], "stage") == term(told[1], "stage")
    assert term(told[1], "init") - term(told[0], "init") == FIRST_US


def test_a_gang_by_a_loaded_block_counts_it() -> None:
    fleet = Fleet(site("a", pool("p", gpus=2)))
    fleet.warm_gang("a", "p-0", 0, 2, "m")
    fresh(fleet, "a", 1)
    assert term(placed(fleet, gang_size=2), "init") == FIRST_US


def test_a_replica_that_lacks_adapters_counts_it_too() -> None:
    fleet = alone()
    fleet.ask(events.AdaptersAdded, actor="t", adapters=(adapter("a", "m"),))
    found = placed(fleet, adapters=(AdapterUse(adapter_id=AdapterId("a")),))
    assert term(found, "init") == FIRST_US and term(found, "adapt") > 0


def test_of_two_places_alike_the_one_that_has_generated_is_taken() -> None:
    for new, known in (("a", "b"), ("b", "a")):
        fleet = Fleet(site("a", pool("p", gpus=1)), site("b", pool("p", gpus=1)))
        for name in ("a", "b"):
            fleet.warm(name, "p-0", 0, "m")
            fleet.report(name)
        fresh(fleet, new, 0)
        assert placed(fleet).site_id == known


def test_what_was_learned_of_loads_corrects_it() -> None:
    fleet = Fleet(site("a", pool("p", gpus=2)), policy=CALM)
    for _ in range(12):  # each load takes twice as long as physics say
        first = placed(fleet)
        live = fleet.machine.context.state.sites[SiteId("a")].attempts[first.key]
        prior_us = (term(first, "stage") + term(first, "init")) * 1_000 // live.factors_milli[list(Component).index(Component.LOAD)]
        fleet.end_attempt("a", first.key, times=PhaseTimes(load_us=2 * prior_us, run_us=term(first, "execution")), after_us=10**7)
        fleet.report("a")  # nothing is loaded any more
    cold = placed(fleet)
    fleet.end_attempt("a", cold.key)
    fresh(fleet, "a", 0, 1)
    corrected = term(placed(fleet), "init") - term(cold, "init")
    assert corrected == pytest.approx(FIRST_US * term(cold, "init") / init_us(model("m")), abs=2_000)
    assert corrected > 1.2 * FIRST_US


def test_a_first_generation_teaches_neither_load_nor_execution() -> None:
    fleet = alone()
    first = placed(fleet)
    live = fleet.machine.context.state.sites[SiteId("a")].attempts[first.key]
    unheard = {component for component, factor in zip(Component, live.factors_milli, strict=True) if not factor}
    assert unheard == {Component.LOAD, Component.EXECUTION, Component.PEER}
    fleet.end_attempt("a", first.key)
    assert work(fleet, 1.0).predicted_us == first.predicted_us - FIRST_US, "nothing was learned, and the process has generated"


def test_a_policy_without_the_term_leaves_it_out() -> None:
    fleet = Fleet(site("a", pool("p", gpus=1)), policy=replace(CALM, terms=DEFAULT.terms - {"init"}))
    fleet.warm("a", "p-0", 0, "m")
    fresh(fleet, "a", 0)
    assert term(placed(fleet), "init") == 0
