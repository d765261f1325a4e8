"""Adapters in placing: a replica that holds them attracts jobs by what it saves, in seconds, and only until its queue costs more."""

from __future__ import annotations

from collections import Counter

import pytest

from atoll.model.ids import AdapterId, GpuTypeId, SiteId
from atoll.model.job import Constraints, JobSpec
from atoll.model.learned import Component
from atoll.model.modelspec import AdapterUse
from atoll.model.placement import Candidate
from atoll.model.quote import Quote
from orchestrator.core import events
from orchestrator.core.learning.corrections import Place
from orchestrator.core.learning.observation import COMPONENTS, Observation
from orchestrator.core.machine import restore
from orchestrator.core.placement.registry import TERM_NAMES
from tests.architecture.sources import REPOSITORY
from tests.unit.fleet_of_machines import GPUS, SECOND, Fleet, adapter, model, pool, site, spec

_ADAPT = TERM_NAMES.index("adapt")
_QUEUE = TERM_NAMES.index("queue")


EIGHT = tuple(AdapterId(f"s{number}") for number in range(1, 9))


def _use(*names: str) -> tuple[AdapterUse, ...]:
    return tuple(AdapterUse(adapter_id=AdapterId(name)) for name in names)


def _fleet(*loaded: str, gpus: int = 1) -> Fleet:
    """Sites a and b with the model warm, c without; b's replicas hold these adapters."""
    fleet = Fleet(*(site(name, pool("p", gpus=gpus)) for name in "abc"), models=(model("m"), model("x")))
    made = (*(adapter(name, "m") for name in EIGHT), adapter("wide", family="t"))
    fleet.ask(events.AdaptersAdded, actor="t", adapters=made)
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


def _warm_places(fleet: Fleet, job: JobSpec) -> dict[str, Candidate]:
    """What a job is offered by resident replicas that lack something, or nothing, by site."""
    quote = fleet.machine.quote_job(job, fleet.now_us)
    assert isinstance(quote, Quote) and quote.chosen is not None
    return {one.site_id: one for one in (quote.chosen, *quote.others) if not one.cold}


def test_what_is_missing_is_counted_one_by_one() -> None:
    """By hand: adapters of 0.1 GB take 0.1 s from an origin of 1 GB/s, and 0.07 s + 0.1 GB / 0.4 GB/s to be put on: 0.42 s each."""
    fleet = _fleet(*EIGHT[:7])
    fleet.submit(spec(adapters=_use(*EIGHT)))
    (chosen,) = _chosen(fleet)
    assert (chosen.site_id, chosen.cold, chosen.lacks) == ("b", False, EIGHT[7:])
    assert chosen.terms_us[_ADAPT] == 420_000
    (job,) = fleet.jobs.values()
    explanation = job.attempts[0].explanation
    assert explanation is not None
    others = {(one.site_id, one.cold): one for one in explanation.others}
    for place in ((SiteId("a"), False), (SiteId("a"), True)):
        assert others[place].lacks == EIGHT and others[place].terms_us[_ADAPT] == 8 * 420_000
    for one in (chosen, *explanation.others):
        assert sum(one.terms_us) == one.total_us


def _rows_of_the_page() -> list[tuple[str, ...]]:
    page = (REPOSITORY / "docs" / "placement.md").read_text(encoding="utf-8")
    _, _, text = page.partition("| the replica has |")
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in text.partition("\n\n")[0].splitlines()[2:]]
    assert len(rows) == 7
    return rows


@pytest.mark.parametrize(("held", "near", "lacking", "seconds"), _rows_of_the_page())
def test_the_page_on_placing_says_what_is_so(held: str, near: str, lacking: str, seconds: str) -> None:
    cold = held == "not loaded"
    fleet = _fleet(*EIGHT[: 0 if cold else int(held)])
    fleet.agents[SiteId("b")].disk_adapters = set(EIGHT[: int(near)])
    fleet.report("b")
    quote = fleet.machine.quote_job(spec(adapters=_use(*EIGHT), constraints=Constraints(sites=(SiteId("b"),))), fleet.now_us)
    assert isinstance(quote, Quote) and quote.chosen is not None
    (found,) = (one for one in (quote.chosen, *quote.others) if one.cold is cold)
    assert (len(found.lacks), f"{found.terms_us[_ADAPT] / SECOND:.3f}") == (int(lacking), seconds)


def test_of_several_replicas_the_one_that_lacks_least_is_meant_and_bound() -> None:
    fleet = _fleet(gpus=3)
    loaded = fleet.agents[SiteId("b")].loaded
    loaded[("p-0", 0)], loaded[("p-0", 1)], loaded[("p-0", 2)] = EIGHT[:2], EIGHT[:6], EIGHT[5:]
    fleet.agents[SiteId("b")].disk_adapters = {EIGHT[6]}  # so that the second lacks one fetch less: it takes 0.42 + 0.32 s
    fleet.report("b")
    job = spec(adapters=_use(*EIGHT))
    found = _warm_places(fleet, job)["b"]
    assert (found.lacks, found.terms_us[_ADAPT]) == (EIGHT[6:], 420_000 + 320_000)
    fleet.submit(job)
    (attempt,) = (job.attempts[0] for job in fleet.jobs.values())
    assert attempt.slot.index == 1


def test_what_was_learned_of_adapting_multiplies_what_is_missing() -> None:
    fleet = _fleet(*EIGHT[:6])
    job = spec(adapters=_use(*EIGHT))
    before = {name: one.terms_us[_ADAPT] for name, one in _warm_places(fleet, job).items()}
    ctx = fleet.machine.context
    for number in range(40):
        place = Place(model_id=job.model_id, gpu_type=GpuTypeId("big"), site_id=SiteId("ab"[number % 2]))
        twice = Observation(component=Component.ADAPT, predicted_us=SECOND, factor_milli=1_000, actual_us=2 * SECOND, at_least=False)
        ctx.book.observe(place, twice, fleet.now_us)
    ctx.book.refresh(fleet.now_us + 3_600 * SECOND)
    after = {name: one.terms_us[_ADAPT] for name, one in _warm_places(fleet, job).items()}
    assert before == {"a": 8 * 420_000, "b": 2 * 420_000}
    assert after["a"] > before["a"] * 1.5 and after["b"] == pytest.approx(after["a"] / 4, rel=0.01)


def test_a_gang_pays_for_what_the_slots_of_its_block_lack() -> None:
    fleet = Fleet(*(site(name, pool("p", gpus=2)) for name in "ab"))
    fleet.ask(events.AdaptersAdded, actor="t", adapters=tuple(adapter(name, "m") for name in EIGHT))
    for name in "ab":
        fleet.warm_gang(name, "p-0", 0, 2, "m")
        fleet.report(name)
    first = spec(adapters=_use(*EIGHT[:7]), gang_size=2)
    fleet.submit(first)
    (before,) = _chosen(fleet)
    assert before.lacks == EIGHT[:7] and before.terms_us[_ADAPT] == 7 * 420_000
    places = _warm_places(fleet, spec(prompt="2", adapters=_use(*EIGHT), gang_size=2))
    other = "b" if before.site_id == "a" else "a"
    assert (places[before.site_id].lacks, places[other].lacks) == (EIGHT[7:], EIGHT)
    assert (places[before.site_id].terms_us[_ADAPT], places[other].terms_us[_ADAPT]) == (420_000, 8 * 420_000)


def test_adapters_that_come_beside_other_work_teach_nothing_of_how_long_they_take() -> None:
    """What is measured of them then is what was left when nothing else was missing."""
    adapting = COMPONENTS.index(Component.ADAPT)
    fleet = _fleet()
    there = Constraints(sites=(SiteId("a"),))
    fleet.submit(*(spec(prompt=str(number), adapters=_use(*EIGHT[number : number + 1]), constraints=there) for number in range(2)))
    fleet.submit(spec("x", adapters=_use("wide"), constraints=Constraints(sites=(SiteId("c"),))))
    lives = fleet.machine.context.state.sites
    first, behind = lives[SiteId("a")].attempts.values()
    (cold,) = lives[SiteId("c")].attempts.values()
    assert (first.factors_milli[adapting], behind.factors_milli[adapting], cold.factors_milli[adapting]) == (1_000, 0, 0)


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
