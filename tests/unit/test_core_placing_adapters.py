"""Adapters in placing: a replica that holds them attracts jobs by what it saves, in seconds, and only until its queue costs more."""

from __future__ import annotations

from collections import Counter

from atoll.model.ids import AdapterId, SiteId
from atoll.model.modelspec import AdapterUse
from atoll.model.placement import Candidate
from orchestrator.core import events
from orchestrator.core.machine import restore
from orchestrator.core.placement.registry import TERM_NAMES
from tests.unit.fleet_of_machines import GPUS, Fleet, adapter, pool, site, spec

_ADAPT = TERM_NAMES.index("adapt")
_QUEUE = TERM_NAMES.index("queue")


def _use(*names: str) -> tuple[AdapterUse, ...]:
    return tuple(AdapterUse(adapter_id=AdapterId(name)) for name in names)


def _fleet(*loaded: str, gpus: int = 1) -> Fleet:
    """Sites a and b with the model warm; b's replica holds these adapters."""
    fleet = Fleet(site("a", pool("p", gpus=gpus)), site("b", pool("p", gpus=gpus)))
    fleet.ask(events.AdaptersAdded, actor="t", adapters=tuple(adapter(name, "m") for name in ("s1", "s2")))
    for name in "ab":
        for gpu in range(gpus):
            fleet.warm(name, "p-0", gpu, "m")
    for gpu in range(gpus):
        fleet.agents[SiteId("b")].loaded[("p-0", gpu)] = loaded
    for name in "ab":
        fleet.report(name)
    return fleet


def _chosen(fleet: Fleet) -> list[Candidate]:
    explanations = [job.attempts[-1].explanation for job in fleet.jobs.values() if job.attempts]
    return [explanation.chosen for explanation in explanations if explanation is not None]


def test_a_replica_that_holds_the_adapters_is_preferred_and_the_others_cost_the_patch() -> None:
    fleet = _fleet("s1")
    fleet.submit(spec(adapters=_use("s1")))
    (job,) = fleet.jobs.values()
    explanation = job.attempts[0].explanation
    assert explanation is not None and explanation.chosen.site_id == "b"
    assert explanation.chosen.terms_us[_ADAPT] == 0
    other = next(one for one in explanation.others if one.site_id == "a" and not one.cold)
    assert other.terms_us[_ADAPT] > 0
    for one in (explanation.chosen, *explanation.others):
        assert sum(one.terms_us) == one.total_us


def test_a_replica_with_some_of_them_is_as_one_with_none() -> None:
    fleet = _fleet("s1")
    fleet.submit(spec(adapters=_use("s2", "s1")))
    (chosen,) = _chosen(fleet)
    assert not chosen.cold and chosen.terms_us[_ADAPT] > 0


def test_files_on_the_node_save_the_fetch() -> None:
    fleet = _fleet()
    fleet.agents[SiteId("b")].disk_adapters = {"s1"}
    fleet.report("b")
    fleet.submit(spec(adapters=_use("s1")))
    (job,) = fleet.jobs.values()
    explanation = job.attempts[0].explanation
    assert explanation is not None and explanation.chosen.site_id == "b"
    other = next(one for one in explanation.others if one.site_id == "a" and not one.cold)
    assert 0 < explanation.chosen.terms_us[_ADAPT] < other.terms_us[_ADAPT]


def test_a_rush_for_one_adapter_makes_no_hotspot() -> None:
    fleet = _fleet("s1", gpus=4)
    fleet.submit(*(spec(prompt=str(number), adapters=_use("s1")) for number in range(12)))
    places = Counter(chosen.site_id for chosen in _chosen(fleet))
    assert places[SiteId("a")] >= 4 and places[SiteId("b")] >= 4, places


def test_a_replica_is_taken_to_hold_what_bound_jobs_will_put_there_until_a_report_says_otherwise() -> None:
    fleet = _fleet()
    fleet.submit(spec(adapters=_use("s1")))
    (first,) = _chosen(fleet)
    fleet.submit(spec(prompt="2", adapters=_use("s1")))
    columns = fleet.machine.context.columns
    held = {
        column.site.site_id: replica.adapters
        for column in columns.columns
        for node in column.pool.nodes
        for slot in node.slots
        for replica in slot.replicas.values()
    }
    assert held[SiteId(first.site_id)] == ("s1",)
    again = restore(fleet.machine.snapshot(), fleet.policy, GPUS)
    assert again.snapshot() == fleet.machine.snapshot()
