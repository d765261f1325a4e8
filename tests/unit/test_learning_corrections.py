"""Corrections: they converge on hidden factors, follow changes, forget, and never go beyond their bounds."""

from __future__ import annotations

import math
import random
import statistics
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from atoll.model.ids import GpuTypeId, ModelId, SiteId
from atoll.model.learned import TOTAL, WAIT, Component, Level
from atoll.model.limits import PREDICTED_US_MAX
from orchestrator.core.learning import corrections
from orchestrator.core.learning.book import Book, restored
from orchestrator.core.learning.factors import Factors, PoolFactors
from orchestrator.core.learning.logs import ONE, log2, milli, millis, nats_milli, times
from orchestrator.core.learning.observation import COMPONENTS, Observation
from orchestrator.core.learning.report import calibration, residuals
from orchestrator.core.learning.sketch import FIRST_GUESS, RECENT_MAX, Sketch
from tests.unit.learned_world import MODES, SECOND, World, factor, place, seen

EXECUTION, FETCH, LOAD = Component.EXECUTION, Component.FETCH, Component.LOAD
HOUR = 3_600 * SECOND


def test_logs_are_right_to_less_than_a_unit_and_alike_for_arrays() -> None:
    for number in (1, 2, 3, 977, 2**30 - 1, 2**31 + 1, 10**15 + 7):
        assert abs(log2(number) - math.log2(number) * ONE) < 1
    logs = np.arange(-2 * ONE, 2 * ONE, 311, dtype=np.int64)
    assert millis(logs).tolist() == [milli(log) for log in logs.tolist()]
    for log in logs.tolist():
        assert milli(log) == pytest.approx(1_000 * 2 ** (log / ONE), abs=0.52)
        assert times(10**9, log) == pytest.approx(10**9 * 2 ** (log / ONE), rel=1e-5)
    assert nats_milli(log2(2)) == 693
    assert nats_milli(-log2(2)) == -693


def test_evidence_is_shrunk_and_shared_among_the_levels() -> None:
    """Five levels, eight attempts that all took twice as long: most of it is believed, by each level the same share."""
    book = Book()
    for second in range(8):
        seen(book, EXECUTION, 2.0, place(), second * SECOND)
    effects = [math.log2(row.effect_milli / 1_000) for row in residuals(book, 8 * SECOND, component=EXECUTION)]
    assert 0.8 < sum(effects) < 0.97
    assert effects == pytest.approx([sum(effects) / 5] * 5, abs=0.02)
    for row in residuals(book, 8 * SECOND, component=EXECUTION):
        assert row.observations_milli == pytest.approx(8_000, rel=0.07)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_hidden_factors_of_sites_are_found(seed: int) -> None:
    """Bias of the first and of the last thousand attempts, and the gates, with noise of 6 % around factors of x0.5 to x2."""
    world = World(seed, Book())
    world.live(EXECUTION, 4_000)
    first, last = world.errors[:1_000], world.errors[-1_000:]
    assert statistics.mean(map(abs, last)) < 0.5 * statistics.mean(map(abs, first))
    assert abs(statistics.median(last)) <= 0.02
    (gate,) = [gate for gate in calibration(world.book).gates if gate.name == EXECUTION]
    assert gate.passed


@pytest.mark.parametrize(
    ("median", "within", "of", "passed"),
    [
        (0.04, 180, 200, True),
        (-0.04, 180, 200, True),
        (0.06, 180, 200, False),
        (-0.06, 180, 200, False),
        (0.0, 172, 200, False),
        (0.0, 176, 200, True),
        (0.0, 184, 200, True),
        (0.0, 188, 200, False),
        (0.0, 171, 190, False),
    ],
)  # fmt: skip
def test_a_gate_holds_within_a_twentieth_of_the_median_and_three_points_of_the_coverage(
    median: float, within: int, of: int, passed: bool
) -> None:
    """Errors of 10 % around the median; so many within their P90, of enough attempts or too few."""
    book = Book()
    chance = random.Random(1)
    for judged in (book.components[EXECUTION].gate, book.quotes.gate, book.waits.gate):
        for number in range(of // 2):
            off = abs(chance.gauss(0, 0.1))
            for nats in (median - off, median + off):
                judged.add(round(nats / math.log(2) * ONE))
            judged.cover(2 * number < within)
            judged.cover(2 * number + 1 < within)
    gates = {gate.name: gate for gate in calibration(book).gates}
    for name in (EXECUTION, TOTAL, WAIT):
        gate = gates[name]
        assert gate.median_milli == pytest.approx(1_000 * median, abs=8)
        assert (gate.coverage_milli, gate.enough, gate.passed) == (within * 1_000 // of, of >= 200, passed), gate


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_without_learning_the_bias_stays(seed: int) -> None:
    world = World(seed, Book(learning=False))
    world.live(EXECUTION, 3_000)
    assert statistics.mean(map(abs, world.errors[-1_000:])) > 0.2
    assert factor(world.book, EXECUTION, place("m1", "g1", "s1")) == 1_000


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_loads_have_two_modes_and_both_gates_hold(seed: int) -> None:
    """A third at a quarter, the rest at twice: P90 is right where a mean and a spread would be wrong, and so is the median."""
    world = World(seed, Book(), modes=MODES, noise=0.2)
    world.live(LOAD, 6_000)
    figures = world.book.components[LOAD].figures
    assert (figures.high_log - figures.low_log) / ONE == pytest.approx(3, abs=0.2)
    (gate,) = [gate for gate in calibration(world.book).gates if gate.name == LOAD]
    assert gate.passed
    # The expected time is what ranks: 1.417 times the middle of the logs.
    assert 2 ** (world.book.components[LOAD].mean_log / ONE) == pytest.approx((0.25 + 2 + 2) / 3, rel=0.06)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_stated_median_keeps_up_while_errors_of_two_modes_become_smaller(seed: int) -> None:
    """What predictions are off by narrows for as long as a fleet is being learned, and the median, on a flank, moves with it."""
    chance = random.Random(seed)
    spread = Sketch(FIRST_GUESS, most=RECENT_MAX)
    median, within, misses = 0, 0, []
    for number in range(1_500):
        narrow = 0.7 - 0.5 * number / 1_500
        off = int((math.log(chance.choice(MODES)) + chance.gauss(0, narrow)) / math.log(2) * ONE)
        misses.append(off - median)
        within += off <= spread.quantile(900)
        spread.add(off)
        median = spread.quantile(500)
    assert abs(statistics.median(misses)) * math.log(2) / ONE < 0.05
    assert 0.87 <= within / 1_500 <= 0.93


def test_sites_that_differ_like_modes_are_told_from_modes() -> None:
    """Two groups of sites, four times apart, and no noise at all: that is what sites are like, not what loads do."""
    book = Book()
    for number in range(1_500):
        site = number % 12
        seen(book, FETCH, 0.5 if site < 6 else 2.0, place(site=f"s{site}"), number * SECOND)
    for site in range(12):
        p50_us, _ = book.spread_us(FETCH, 10 * SECOND, place(site=f"s{site}"))
        assert p50_us == pytest.approx(5 * SECOND if site < 6 else 20 * SECOND, rel=0.12)


def test_a_factor_never_leaves_its_bounds() -> None:
    book = Book()
    for number in range(200):
        seen(book, EXECUTION, 50.0, place(site="slow"), number * 6 * SECOND)
        seen(book, EXECUTION, 0.01, place(site="fast", gpu="h", model="n"), number * 6 * SECOND)
    assert factor(book, EXECUTION, place(site="slow")) == 4_000
    assert factor(book, EXECUTION, place(site="fast", gpu="h", model="n")) >= 250


def test_news_are_published_at_most_every_five_seconds_and_only_when_they_matter() -> None:
    book = Book()
    versions = []
    for tenth in range(100):
        seen(book, EXECUTION, 2.0, place(), tenth * SECOND // 10)
        versions.append(book.version_of(ModelId("m")))
    changes = sum(1 for one, next_one in pairwise(versions) if one != next_one)
    assert changes <= 2
    known = Book()
    for number in range(3_000):
        seen(known, EXECUTION, 1.01, place(), number * 6 * SECOND)
    assert known.version_of(ModelId("m")) == 0


def test_only_the_models_concerned_are_told() -> None:
    book = Book()
    for number in range(400):
        seen(book, EXECUTION, 1.0, place("other"), number * 6 * SECOND)
        seen(book, EXECUTION, 1.0, place("third"), number * 6 * SECOND)
    shared, other = book.shared_version, book.version_of(ModelId("other"))
    for number in range(400, 402):
        seen(book, EXECUTION, 1.6, place("m"), number * 6 * SECOND)
    assert book.shared_version == shared
    assert book.version_of(ModelId("other")) == other
    assert book.version_of(ModelId("m")) > shared


def test_what_was_cut_off_counts_only_beyond_its_prediction() -> None:
    book = Book()
    for number in range(100):
        seen(book, EXECUTION, 0.5, place(), number * 6 * SECOND, at_least=True)
    assert factor(book, EXECUTION, place()) == 1_000
    for number in range(100, 200):
        seen(book, EXECUTION, 2.0, place(), number * 6 * SECOND, at_least=True)
    # At least twice as long: dropped they would say nothing, taken as they are too little.
    assert factor(book, EXECUTION, place()) > 1_800
    (gate,) = [gate for gate in calibration(book).gates if gate.name == EXECUTION]
    assert gate.observations == 0


def test_half_of_the_long_ones_are_cut_off_and_the_median_is_still_found() -> None:
    """Cancelled at the predicted time when they take longer: dropping them would make every estimate too short, and shorter each time."""
    import random

    chance = random.Random(7)
    kept, dropped = Book(), Book()
    for number in range(3_000):
        ratio = math.exp(math.log(2) + chance.gauss(0, 0.3))
        impatient = chance.random() < 0.5
        for book, drops in ((kept, False), (dropped, True)):
            patience = 1.1 * factor(book, EXECUTION, place()) / 1_000
            cut = impatient and ratio > patience
            if not (cut and drops):
                seen(book, EXECUTION, min(ratio, patience) if cut else ratio, place(), number * SECOND, at_least=cut)
    errors = [abs(math.log(book.spread_us(EXECUTION, 10**6, place())[0] / 2e6)) for book in (kept, dropped)]
    assert errors[0] < 0.06 < errors[1]


def test_a_site_that_got_slower_is_followed_and_reported_once() -> None:
    book = Book()
    for number in range(300):
        for site in ("a", "b", "c"):
            ratio = 1.0 + 0.05 * ((number * 7 + len(site)) % 5 - 2)
            assert seen(book, EXECUTION, ratio, place(site=site), number * 6 * SECOND) is None
    before = factor(book, EXECUTION, place(site="b"))
    shifts = []
    for number in range(300, 400):
        for site in ("a", "b", "c"):
            ratio = (2.0 if site == "b" else 1.0) * (1.0 + 0.05 * ((number * 7) % 5 - 2))
            shift = seen(book, EXECUTION, ratio, place(site=site), number * 6 * SECOND)
            if shift is not None:
                shifts.append((number, shift))
    ((when, shift),) = shifts
    assert when < 308
    assert (shift.site_id, shift.component) == ("b", EXECUTION)
    assert shift.to_milli > 1.5 * shift.from_milli
    assert before == pytest.approx(1_000, rel=0.05)
    assert factor(book, EXECUTION, place(site="b")) == pytest.approx(2_000, rel=0.08)
    assert factor(book, EXECUTION, place(site="a")) == pytest.approx(1_000, rel=0.08)


def test_a_young_change_widens_the_stated_p90_of_its_site() -> None:
    book = Book()
    for number in range(400):
        seen(book, EXECUTION, 1.0, place(site=f"s{number % 4}"), number * 6 * SECOND)
    for number in range(400, 406):
        if seen(book, EXECUTION, 2.0, place(site="s1"), number * 6 * SECOND) is not None:
            break
    p50_us, p90_us = book.spread_us(EXECUTION, 10 * SECOND, place(site="s1"))
    calm50_us, calm90_us = book.spread_us(EXECUTION, 10 * SECOND, place(site="s2"))
    assert p90_us / p50_us > 1.2 * calm90_us / calm50_us


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5, 6])
def test_sites_that_do_not_change_raise_no_alarm(seed: int) -> None:
    assert World(seed, Book()).live(EXECUTION, 6_000) == []


def test_a_site_that_was_slow_once_is_believed_again_in_time() -> None:
    book = Book()
    for number in range(100):
        seen(book, EXECUTION, 4.0, place(site="slow"), number * SECOND)
        seen(book, EXECUTION, 1.0, place(site="ok"), number * SECOND)
    slow, ok = place(site="slow"), place(site="ok")
    assert factor(book, EXECUTION, slow) > 2.5 * factor(book, EXECUTION, ok)
    # Nobody is sent there any more; the other site works on.
    gaps = []
    for minute in range(0, 6 * 60, 2):
        seen(book, EXECUTION, 1.0, ok, 100 * SECOND + minute * 60 * SECOND)
        gaps.append(factor(book, EXECUTION, slow) / factor(book, EXECUTION, ok))
    assert gaps[0] > 2.5
    # What is left is what both together say of a site that is not known.
    assert gaps[-1] < 1.6
    assert gaps[45] > gaps[90] > gaps[-1]


def test_cells_are_bounded_and_the_longest_unseen_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(corrections.CELLS_MAX, Level.MODEL_SITE, 10)
    book = Book()
    for number in range(40):
        seen(book, EXECUTION, 3.0, place(model=f"m{number}"), number * 6 * SECOND)
    table = book.components[EXECUTION].tables[Level.MODEL_SITE]
    assert [name for name, _ in table] == [f"m{number}" for number in range(30, 40)]
    # The levels above keep what was learned.
    assert factor(book, EXECUTION, place(model="m0")) > 2_000


def test_a_refresh_takes_up_so_many_cells_and_the_rest_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corrections, "_CHANGED_MAX", 3)
    book = Book()
    for number in range(12):
        where = place(model=f"m{number}")
        observation = Observation(component=EXECUTION, predicted_us=SECOND, factor_milli=1_000, actual_us=3 * SECOND, at_least=False)
        book.observe(where, observation, number)
    own = []
    for turn in range(1, 5):
        # A restored book goes on with the same ones.
        again = restored(book.take())
        for one in (again, book):
            one.refresh(turn * 6 * SECOND)
        assert again.take() == book.take()
        table = book.components[EXECUTION].tables[Level.MODEL_SITE]
        own.append(sorted(int(name[1:]) for (name, _), cell in table.items() if not cell.changed))
    assert own == [list(range(3 * turn)) for turn in range(1, 5)]


def test_arrays_of_pools_are_the_same_integers() -> None:
    world = World(5, Book(), modes=MODES, noise=0.2)
    world.live(FETCH, 800)
    world.live(EXECUTION, 800)
    pools = [place("m", f"g{site % 5}", f"s{site}") for site in range(40)]
    columns = [SimpleNamespace(pool=SimpleNamespace(site_id=one.site_id, gpu=SimpleNamespace(gpu_type=one.gpu_type))) for one in pools]
    arrays = PoolFactors(world.book)
    found = arrays.of(ModelId("m"), columns)
    for model in ("m0", "m3", "unseen"):
        found = arrays.of(ModelId(model), columns)
        for index, component in enumerate(COMPONENTS):
            expected = [world.book.factors_milli(ModelId(model), one.gpu_type, one.site_id)[index] for one in pools]
            assert found.milli[component].tolist() == expected
    # Rows of pools, warm and cold: the same factor for both.
    doubled = found.times(EXECUTION, np.full(80, 10**12, dtype=np.int64))
    assert doubled[:40].tolist() == doubled[40:].tolist() == (found.milli[EXECUTION] * 10**9).tolist()


def test_where_all_is_slow_a_slow_place_is_corrected_within_the_bounds_in_arrays_too() -> None:
    """A place's own effects are bounded, and so is what they come to with the mean of all."""
    book = Book()
    for number in range(400):
        for one in range(4):
            seen(book, EXECUTION, 50.0, place(f"m{one}", site=f"s{one}"), number * 6 * SECOND)
    pools = [SimpleNamespace(pool=SimpleNamespace(site_id="s1", gpu=SimpleNamespace(gpu_type="g")))]
    (milli,) = PoolFactors(book).of(ModelId("m1"), pools).milli[EXECUTION].tolist()
    assert milli == book.factors_milli(ModelId("m1"), GpuTypeId("g"), SiteId("s1"))[COMPONENTS.index(EXECUTION)] == 4_000


def test_no_corrected_time_is_longer_than_a_year_nor_leaves_its_integers() -> None:
    slower = Factors(milli={EXECUTION: np.array([4_000, 1_000], dtype=np.int64)})
    priors = np.array([PREDICTED_US_MAX, 2**62], dtype=np.int64)
    assert slower.times(EXECUTION, priors).tolist() == [PREDICTED_US_MAX] * 2
    assert slower.times(EXECUTION, priors[::-1]).tolist() == [PREDICTED_US_MAX] * 2


def test_forgetting_one_site_or_one_component_leaves_the_rest() -> None:
    book = Book()
    for number in range(200):
        for component in (EXECUTION, FETCH):
            seen(book, component, 2.0 if number % 2 else 1.0, place(site=f"s{number % 2}"), number * 6 * SECOND)
    version = book.version_of(ModelId("m"))
    book.forget(FETCH, SiteId("s1"))
    assert book.version_of(ModelId("m")) > version
    assert factor(book, FETCH, place(site="s1")) < 0.85 * factor(book, EXECUTION, place(site="s1"))
    book.forget(EXECUTION, None)
    assert factor(book, EXECUTION, place(site="s1")) == 1_000
    assert factor(book, FETCH, place(site="s0")) != 1_000
    book.forget(None, None)
    assert residuals(book, 0) == ()


def test_what_nothing_is_known_of_has_no_line() -> None:
    book = Book()
    seen(book, FETCH, 0.5, place(site="s0"), 0, at_least=True)
    assert residuals(book, 0) == (), "it was cut off before it was due"
    seen(book, EXECUTION, 1.1, place(site="s0"), SECOND)
    assert {row.level for row in residuals(book, SECOND)} == set(Level)
    assert min(row.observations_milli for row in residuals(book, SECOND)) > 900
    # What is known of a site fades within hours, what is known of all within days.
    assert {row.level for row in residuals(book, 5 * HOUR)} == set(Level) - {Level.SITE, Level.MODEL_SITE}
    assert residuals(book, 300 * HOUR) == ()


def test_lines_can_be_asked_for_by_site_and_model() -> None:
    book = Book()
    for model in ("m", "n"):
        for site in ("a", "b"):
            seen(book, EXECUTION, 2.0, place(model, "g", site), SECOND)
    every = residuals(book, SECOND)
    assert every[0].level is Level.ALL
    assert len(every) == 1 + 1 + 2 + 2 + 4
    names: Any = {(row.level, row.name, row.other) for row in residuals(book, SECOND, site_id=SiteId("a"), model_id=None)}
    assert names == {(Level.SITE, "a", ""), (Level.MODEL_SITE, "m", "a"), (Level.MODEL_SITE, "n", "a")}
    names = {(row.level, row.name, row.other) for row in residuals(book, SECOND, model_id=ModelId("m"))}
    assert names == {(Level.MODEL_GPU_TYPE, "m", "g"), (Level.MODEL_SITE, "m", "a"), (Level.MODEL_SITE, "m", "b")}
