"""One suite over every registered term: it says what it is, computes whole microseconds, is 0 where it should be, and can be left out."""

from __future__ import annotations

import importlib
import pkgutil
import re
from dataclasses import replace
from types import ModuleType
from typing import Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.model.ids import AdapterId, SiteId
from atoll.model.modelspec import AdapterUse
from atoll.model.placement import PRICE_TERMS, Candidate, Explanation
from atoll.model.quote import Quote
from atoll.model.site import LinkSpec
from orchestrator.core import events
from orchestrator.core.placement import terms
from orchestrator.core.placement.inputs import Inputs
from orchestrator.core.placement.policy import ALL_TERMS, Policy
from orchestrator.core.placement.registry import OVERLAP, TERM_NAMES, TERMS, Term, still
from orchestrator.core.placement.rows import Ints, Out
from tests.unit.fleet_of_machines import SECOND, Fleet, adapter, in_regions, model, pool, site, spec

MODULES: Final[dict[str, ModuleType]] = {
    found.NAME: found
    for found in (importlib.import_module(f"{terms.__name__}.{each.name}") for each in pkgutil.iter_modules(terms.__path__))
}
EVERY = pytest.mark.parametrize("term", TERMS, ids=[term.name for term in TERMS])
STILL = [term for term in TERMS if term.still is not None]
# In time for sure, a job's delay costs nothing: the one term that takes something back.
MAY_BE_NEGATIVE: Final = {"deadline"}


@st.composite
def inputs(draw: st.DrawFn) -> Inputs:
    """Figures of some rows, from nothing to a day, a petabyte's price, a GPU lost each hour."""
    rows = draw(st.integers(1, 6))

    def column(most: int) -> Ints:
        return np.array(draw(st.lists(st.integers(0, most), min_size=rows, max_size=rows)), dtype=np.int64)

    day_us = 86_400 * SECOND
    return Inputs(
        cold=column(1).astype(np.bool_),
        input_us=column(day_us),
        stage_us=column(day_us),
        init_us=column(day_us),
        adapt_us=column(day_us),
        compile_us=column(day_us),
        execution_us=column(day_us),
        output_us=column(day_us),
        usd_micros_per_hour=column(100_000_000),
        egress_usd_micros=column(100_000_000),
        preemptions_per_million_hours=column(1_000_000),
        gang_size=draw(st.sampled_from([1, 2, 4, 8])),
        weight_milli=draw(st.sampled_from([10, 200, 1_000, 5_000, 100_000])),
        seconds_per_dollar=draw(st.integers(0, 10_000)),
        hazard_per_million_hours=draw(st.integers(0, 8_000_000)),
        fail_ppm=draw(st.integers(0, 1_000_000)),
    )


# --- what each says of itself -------------------------------------------------------------------------------------------------------


def test_every_file_is_a_registered_term() -> None:
    assert set(MODULES) == {term.name for term in TERMS}
    assert {name for name, _ in zip(TERM_NAMES, TERMS, strict=False)} | {OVERLAP} == set(TERM_NAMES)
    assert {term.name for term in TERMS if term.price} == PRICE_TERMS
    assert {term.name for term in TERMS} - ALL_TERMS == {"queue", "fetch"}


@EVERY
def test_a_term_says_unit_formula_source_and_when_it_fails(term: Term) -> None:
    text = " ".join((MODULES[term.name].__doc__ or "").split())
    assert "Unit: microseconds" in text
    for part in ("Formula", "ource: ", "Fails "):
        assert re.search(rf"\b\w?{part}.{{20,}}", text), f"{term.name}: {part}"


@EVERY
def test_a_term_either_stands_still_or_is_written_by_a_decision(term: Term) -> None:
    assert (term.still is None) != (term.moving is None)
    assert term.moving is None or term.moving in Out


# --- those that stand still ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", STILL, ids=[term.name for term in STILL])
@given(inputs())
def test_figures_are_whole_microseconds_of_every_row_and_never_negative(term: Term, given_: Inputs) -> None:
    assert term.still is not None
    figures = term.still(given_)
    assert figures.dtype == np.int64
    assert figures.shape == given_.cold.shape
    assert (figures >= 0).all()


@pytest.mark.parametrize("name", ["stage", "init"])
@given(inputs())
def test_what_only_a_load_needs_is_0_where_the_model_is_resident(name: str, given_: Inputs) -> None:
    (term,) = [term for term in STILL if term.name == name]
    assert term.still is not None
    assert not term.still(given_)[~given_.cold].any()


@settings(deadline=None)
@given(inputs())
def test_a_term_that_is_left_out_is_0_and_touches_no_other(given_: Inputs) -> None:
    whole = still(given_, ALL_TERMS)
    for name in sorted(ALL_TERMS):
        without = still(given_, ALL_TERMS - {name})
        for index, other in enumerate(TERM_NAMES):
            expected = np.zeros_like(whole.terms[:, index]) if other == name else whole.terms[:, index]
            assert np.array_equal(without.terms[:, index], expected)
    by_name = dict(zip(TERM_NAMES, whole.terms.T, strict=True))
    assert np.array_equal(whole.serial_us, sum(by_name[name] for name in ("stage", "init", "adapt", "compile", "execution", "output")))
    assert np.array_equal(whole.price_us, by_name["net"])


# --- all of them, in a fleet --------------------------------------------------------------------------------------------------------


def _fleet(terms_: frozenset[str] = ALL_TERMS) -> Fleet:
    """Warm replicas that work, weights on a disk, room to be made, links that cost, sites that lose GPUs, adapters, a compiled model,
    a way to the origin that is in use."""
    sites = tuple(
        replace(one, egress_usd_micros_per_gb=90_000, preemptions_per_million_gpu_hours=50_000, wan_bytes_per_s=10**6)
        for one in (
            site("a", pool("p", gpus=1)),
            site("b", pool("q", "small", gpus=2)),
            site("home", pool("h", "small", gpus=1)),
            site("gangs", pool("g", gpus=2)),
            site("way", pool("w", gpus=2)),
        )
    )
    policy = Policy(terms=terms_, silent_after_ms=10**9, preemptions_max=0)
    fleet = Fleet(*sites, models=(model("m"), model("x", 18), model("f"), replace(model("c"), compiled=True)), policy=policy)
    links = tuple(LinkSpec(src=SiteId(name), dst=SiteId("home"), rtt_us=50_000, bytes_per_s=10**6) for name in "ab")
    fleet.happen(events.SitesApplied(request=fleet.request(), actor="t", reason="", sites=sites, links=links))
    fleet.ask(events.AdaptersAdded, actor="t", adapters=(adapter("style", "m"),))
    fleet.warm("a", "p-0", 0, "m")
    for index in range(2):
        fleet.warm("b", "q-0", index, "x", 18)
    fleet.warm("home", "h-0", 0, "x", 18)
    fleet.warm_gang("gangs", "g-0", 0, 2, "x")
    fleet.agents[SiteId("b")].disk = {"x"}
    for one in sites:
        fleet.report(one.site_id)
    fleet.submit(spec("f", constraints=in_regions("region-way")))  # its weights are on their way there
    fleet.submit(*(spec(prompt=str(number), origin_site=SiteId("home")) for number in range(2)))
    return fleet


def _places(fleet: Fleet) -> list[Candidate]:
    """All places of decisions that were taken, and of offers that are made now."""
    home = SiteId("home")
    asked = (
        spec(origin_site=home),
        spec(adapters=(AdapterUse(adapter_id=AdapterId("style")),), origin_site=home, deadline_ms=3_600_000),
        spec(origin_site=home, deadline_ms=1),
        spec("c"),
    )
    told: list[Explanation | Quote] = [
        attempt.explanation for job in fleet.jobs.values() for attempt in job.attempts if attempt.explanation is not None
    ]
    for one in asked:
        quote = fleet.machine.quote_job(one, fleet.now_us)
        assert isinstance(quote, Quote)
        told.append(quote)
    return [candidate for one in told for candidate in (one.chosen, *one.others) if candidate is not None]


@EVERY
def test_a_term_counts_somewhere_in_a_real_decision(term: Term) -> None:
    figures = [place.terms_us[TERM_NAMES.index(term.name)] for place in _places(_fleet())]
    assert any(figures), "a term that is 0 everywhere proves nothing"
    assert term.name in MAY_BE_NEGATIVE or min(figures) >= 0


@pytest.mark.parametrize("name", sorted(ALL_TERMS))
def test_a_term_that_the_policy_leaves_out_is_0_everywhere(name: str) -> None:
    for place in _places(_fleet(ALL_TERMS - {name})):
        assert place.terms_us[TERM_NAMES.index(name)] == 0
        assert sum(place.terms_us) == place.total_us


def test_the_parts_that_go_on_together_are_counted_once() -> None:
    for place in _places(_fleet()):
        told = dict(zip(TERM_NAMES, place.terms_us, strict=True))
        together = [told[term.name] for term in TERMS if term.concurrent]
        assert told[OVERLAP] == max(together) - sum(together) <= 0


def test_resident_places_need_no_load() -> None:
    for place in _places(_fleet()):
        told = dict(zip(TERM_NAMES, place.terms_us, strict=True))
        if not place.cold:
            assert told["fetch"] == told["stage"] == told["init"] == told["evict"] == told["churn"] == 0
        else:
            assert told["init"] > 0 and told["stage"] > 0
