"""How wide predictions are: by start, by what is made, by part and by pool; and what a deadline makes of it."""

from __future__ import annotations

import random

import pytest

from atoll.model.ids import ModelId, PoolId, SiteId
from atoll.model.learned import Start
from atoll.model.modelspec import Modality
from atoll.model.quote import Quote
from atoll.wire.stored import decode_estimates, encode_estimates
from orchestrator.core.learning.book import Book, restored
from orchestrator.core.learning.quotes import Completion
from orchestrator.core.learning.widths import POOLS_MAX, PoolKey
from orchestrator.core.machine import restore
from orchestrator.core.placement.policy import Policy
from tests.unit.fleet_of_machines import GPUS, Fleet, pool, site, spec

SECOND = 1_000_000
STEADY, SHAKY = (SiteId("steady"), PoolId("p")), (SiteId("shaky"), PoolId("p"))
CALM = Policy(silent_after_ms=10**9, lost_after_min_ms=10**9, lost_after_max_ms=10**9, stop_after_ms=10**9, hang_min_ms=10**9)
BEFORE, EXECUTION = 0, 2


def took(
    before: float,
    execution: float,
    *,
    start: Start = Start.WARM,
    modality: Modality = Modality.IMAGE,
    at: PoolKey = STEADY,
    number: int = 0,
) -> Completion:
    """A job that was to wait and to execute for 100 s each, and did so for so many times as long."""
    before_us = int(before * 100 * SECOND)
    return Completion(
        start=start, modality=modality, model_id=ModelId("m"), decided_us=number * 60 * SECOND, before_us=100 * SECOND,
        execution_us=100 * SECOND, actual_us=before_us + int(execution * 100 * SECOND), actual_before_us=before_us, pool=at,
    )  # fmt: skip


def widths(book: Book, start: Start, part: int, modality: Modality = Modality.IMAGE) -> tuple[int, int]:
    """(middle, width) of a part, thousandths of what is predicted."""
    told = book.widths.of(modality)
    at = 4 * list(Start).index(start) + part
    return told[at], told[at + 1]


def learn(book: Book, sigma: float, count: int, seed: int = 1, **changes: object) -> None:
    """Jobs whose execution is off by so much at random."""
    chance = random.Random(seed)
    for number in range(count):
        book.observe_total(took(chance.lognormvariate(0, sigma), chance.lognormvariate(0, sigma), number=number, **changes))  # type: ignore[arg-type]  # fields of `took`
    book.refresh(book.refreshed_us + 10 * SECOND)


def test_before_anything_was_seen_the_policy_says_how_wide() -> None:
    for start in Start:
        assert widths(Book(spread_milli=1_500), start, EXECUTION) == (1_000, 500)


def test_widths_follow_what_was_seen_of_each_start_and_of_each_modality() -> None:
    book = Book()
    learn(book, 0.05, 300, start=Start.DISK)
    learn(book, 0.5, 300, start=Start.ORIGIN)
    assert 80 < widths(book, Start.DISK, BEFORE)[1] < 200, "1.645 x 5 %, and a little of what all loads are"
    assert widths(book, Start.ORIGIN, BEFORE)[1] == pytest.approx(1_000 * (2.718 ** (1.645 * 0.5) - 1), rel=0.25)
    assert widths(book, Start.ORIGIN, BEFORE)[0] == pytest.approx(1_000, rel=0.1)
    assert widths(book, Start.WARM, BEFORE, Modality.VIDEO) == (1_000, 1_000), "nobody has seen one begin"


def test_a_start_that_was_seen_little_is_drawn_toward_all_that_load() -> None:
    book = Book()
    learn(book, 0.05, 300, start=Start.DISK)
    learn(book, 0.05, 4, start=Start.HOST)
    disk, host, peer = (widths(book, start, BEFORE)[1] for start in (Start.DISK, Start.HOST, Start.PEER))
    assert disk < 200 and host < 300 and peer < 300
    assert widths(Book(), Start.PEER, BEFORE)[1] == 1_000


def test_a_pool_has_a_width_of_its_own_from_eight_observations_on() -> None:
    book = Book()
    learn(book, 0.1, 100, at=STEADY)
    learn(book, 0.6, 100, at=SHAKY)
    steady, shaky = (book.widths.scales()[at][1] for at in (STEADY, SHAKY))
    assert steady < 500 and shaky > 1_000 and shaky > 3 * steady
    learn(book, 2.0, 7, at=(SiteId("new"), PoolId("p")))
    assert book.widths.scales()[SiteId("new"), PoolId("p")] == (1_000, 1_000)


def test_widths_stand_until_they_are_read_anew_and_outlive_a_restart() -> None:
    book = Book()
    learn(book, 0.3, 100, at=SHAKY, start=Start.PEER)
    version, told = book.widths.version, book.widths.of(Modality.IMAGE)
    book.observe_total(took(3.0, 3.0, at=SHAKY))
    assert (book.widths.version, book.widths.of(Modality.IMAGE)) == (version, told)
    again = restored(decode_estimates(encode_estimates(book.take())))
    assert again.take() == book.take()
    assert (again.widths.of(Modality.IMAGE), again.widths.scales()) == (told, book.widths.scales())
    for one in (book, again):
        one.refresh(10**9)
    assert again.take() == book.take()


def test_whoever_does_not_learn_keeps_the_policys_width_and_what_is_forgotten_is_gone() -> None:
    stubborn, book = Book(learning=False), Book()
    for one in (stubborn, book):
        learn(one, 0.05, 100, at=SHAKY)
    assert widths(stubborn, Start.WARM, EXECUTION) == (1_000, 1_000) and set(stubborn.widths.scales().values()) == {(1_000, 1_000)}
    version = book.widths.version
    book.forget(None, SHAKY[0])
    assert SHAKY not in book.widths.scales() and book.widths.version > version
    version = book.widths.version
    book.forget(None, None)
    assert widths(book, Start.WARM, EXECUTION) == (1_000, 1_000) and book.widths.version > version


def test_pools_are_bounded_and_the_oldest_goes_first() -> None:
    book = Book()
    for number in range(POOLS_MAX + 3):
        book.widths.observe(took(1.0, 1.0, at=(SiteId(f"s{number}"), PoolId("p"))), 1_024)
    found = book.widths.scales()
    assert len(found) == POOLS_MAX and (SiteId("s2"), PoolId("p")) not in found and (SiteId("s3"), PoolId("p")) in found


def _two_sites() -> Fleet:
    """Twins but for how sure they are: at one jobs take what was predicted, at the other half or twice of it."""
    fleet = Fleet(*(site(name, pool("p", gpus=2)) for name in ("shaky", "steady")), policy=CALM)
    for name in ("shaky", "steady"):
        fleet.warm(name, "p-0", 0, "m")
        fleet.warm(name, "p-0", 1, "m")
        fleet.report(name)
    return fleet


def _offered(fleet: Fleet, deadline_ms: int) -> tuple[str, dict[str, int]]:
    """Where a job would go, and what it would cost at each site."""
    quote = fleet.machine.quote_job(spec(deadline_ms=deadline_ms), fleet.now_us)
    assert isinstance(quote, Quote) and quote.chosen is not None
    return quote.chosen.site_id, {one.site_id: one.total_us for one in (quote.chosen, *quote.others) if not one.cold}


def test_of_two_sites_with_equal_means_a_tight_deadline_goes_to_the_surer_one_and_no_deadline_is_indifferent() -> None:
    fleet = _two_sites()
    book, chance = fleet.machine.context.book, random.Random(7)
    for number in range(200):
        book.observe_total(took(1.0, chance.lognormvariate(0, 0.02), at=STEADY, number=number))
        book.observe_total(took(1.0, chance.choice((0.5, 1.0, 1.0, 2.0)), at=SHAKY, number=number))
    fleet.now_us += 10 * SECOND
    before, _ = _offered(fleet, 0)
    book.refresh(fleet.now_us)
    chosen, without = _offered(fleet, 0)
    assert without["steady"] == without["shaky"] and chosen == before, "neither is any better"
    quote = fleet.machine.quote_job(spec(), fleet.now_us)
    assert isinstance(quote, Quote)
    tight_ms = quote.predicted_us * 5 // 4 // 1_000
    chosen, tight = _offered(fleet, tight_ms)
    assert chosen == "steady" and tight["steady"] < tight["shaky"]
    _, ample = _offered(fleet, tight_ms * 100)
    assert ample["steady"] == ample["shaky"], "both are in time for sure"
    again = restore(fleet.machine.snapshot(), CALM, GPUS)
    assert again.snapshot() == fleet.machine.snapshot()
    known = again.quote_job(spec(deadline_ms=tight_ms), fleet.now_us)
    assert known == fleet.machine.quote_job(spec(deadline_ms=tight_ms), fleet.now_us)
