"""Whatever attempts say: bounds hold, a restored book goes on like the one it was taken of, and what is independent stays so."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.model.ids import GpuTypeId, ModelId, SiteId
from atoll.model.learned import Component
from atoll.model.modelspec import Modality
from orchestrator.core.learning.book import Book, restored
from orchestrator.core.learning.corrections import Place
from orchestrator.core.learning.observation import COMPONENTS, Observation
from orchestrator.core.learning.report import calibration, residuals
from tests.unit.learned_world import completion

_NAMES = st.sampled_from(["a", "b", "c"])
_PLACES = st.builds(Place, model_id=_NAMES.map(ModelId), gpu_type=_NAMES.map(GpuTypeId), site_id=_NAMES.map(SiteId))
_OBSERVATIONS = st.builds(
    Observation,
    component=st.sampled_from(COMPONENTS),
    predicted_us=st.integers(1_000, 10**13),
    factor_milli=st.integers(250, 4_000),
    actual_us=st.integers(1_000, 10**13),
    at_least=st.booleans(),
)
# Seconds since the one before: bursts, and nights without work.
_GAPS = st.sampled_from([0, 1, 7, 600, 50_000])
_SEEN = st.lists(st.tuples(_PLACES, _OBSERVATIONS, _GAPS), max_size=60)
_EVERYWHERE = [(model, gpu, site) for model in "abc" for gpu in "abc" for site in "abc"]


def _live(book: Book, seen: list[tuple[Place, Observation, int]], now_us: int = 0) -> list[object]:
    """Everything that the book answers on the way."""
    answers: list[object] = []
    for place, observation, gap in seen:
        now_us += gap * 1_000_000
        answers.append(book.observe(place, observation, now_us))
        actual_us = observation.actual_us
        book.decided(place.model_id, now_us)
        # By name and size, so that all kinds, parts and ways to end are met.
        begun_us = actual_us * (actual_us % 3) // 2 if actual_us % 5 else -1
        seen_ = completion(
            cold=actual_us % 2 == 1, modality=Modality.VIDEO if place.site_id == "a" else Modality.IMAGE, model=place.model_id,
            decided_us=now_us, before_us=observation.factor_milli - 250, execution_us=observation.predicted_us, actual_us=actual_us,
            actual_before_us=begun_us, at_least=observation.at_least,
        )  # fmt: skip
        book.observe_total(seen_)
        before = book.version_of(place.model_id)
        book.refresh(now_us)
        answers.extend((book.version_of(place.model_id) - before, book.checkpoint(now_us), book.quote(10**6, 10**6, True, Modality.IMAGE)))
        answers.append(_factors(book))
    return answers


def _factors(book: Book) -> list[tuple[int, ...]]:
    return [book.factors_milli(ModelId(model), GpuTypeId(gpu), SiteId(site)) for model, gpu, site in _EVERYWHERE]


@settings(max_examples=150, deadline=None)
@given(_SEEN, _SEEN)
def test_a_restored_book_goes_on_like_the_one_it_was_taken_of(
    before: list[tuple[Place, Observation, int]], after: list[tuple[Place, Observation, int]]
) -> None:
    book = Book()
    _live(book, before)
    taken = book.take()
    again = restored(taken)
    assert again.take() == taken
    assert _factors(again) == _factors(book)
    from_us = 10**12
    assert _live(again, after, from_us) == _live(book, after, from_us)
    assert again.take() == book.take()


@settings(max_examples=150, deadline=None)
@given(_SEEN)
def test_factors_and_figures_stay_within_their_bounds(seen: list[tuple[Place, Observation, int]]) -> None:
    book = Book()
    _live(book, seen)
    assert all(250 <= factor <= 4_000 for factors in _factors(book) for factor in factors)
    for row in residuals(book, 0):
        assert 0 <= row.coverage_milli <= 1_000
        assert row.spread_milli >= 0
    for gate in calibration(book).gates:
        assert 0 <= gate.coverage_milli <= 1_000
    for cold in (False, True):
        for before_us in (0, 10**3, 10**9):
            told = book.quote(before_us, 10**9, cold, Modality.IMAGE)
            assert 0 < told.p50_us <= told.p90_us
            assert 0 <= told.begin_p50_us <= told.begin_p90_us <= told.p90_us and told.begin_p50_us <= told.p50_us


@settings(max_examples=100, deadline=None)
@given(_SEEN, st.randoms(use_true_random=False))
def test_components_do_not_know_of_one_another(seen: list[tuple[Place, Observation, int]], chance: object) -> None:
    """Observations of different components may come in any order among each other."""
    told = [(place, observation) for place, observation, _ in seen]
    apart = [one for component in COMPONENTS for one in told if one[1].component is component]
    books = Book(), Book()
    for book, order in zip(books, (told, apart), strict=True):
        for place, observation in order:
            book.observe(place, observation, 1_000_000)
        book.refresh(7_000_000)
    assert books[0].take().components == books[1].take().components


@settings(max_examples=100, deadline=None)
@given(_SEEN)
def test_with_learning_off_everything_is_judged_and_nothing_is_corrected(seen: list[tuple[Place, Observation, int]]) -> None:
    book = Book(learning=False)
    _live(book, seen)
    assert set(_factors(book)) == {(1_000,) * len(COMPONENTS)}
    complete = [observation for _, observation, _ in seen if not observation.at_least]
    for component in COMPONENTS:
        expected = sum(1 for observation in complete if observation.component is component)
        (gate,) = [gate for gate in calibration(book).gates if gate.name == component]
        assert gate.observations == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1_000, 10**9), min_size=1, max_size=40), st.integers(1_100, 4_000))
def test_a_slower_world_is_never_estimated_faster(actual: list[int], slower_milli: int) -> None:
    """Scaling every actual up scales no factor down, but for the steps in which factors are published."""
    place = Place(model_id=ModelId("a"), gpu_type=GpuTypeId("a"), site_id=SiteId("a"))
    books = Book(), Book()
    for number, actual_us in enumerate(actual):
        for book, scale in zip(books, (1_000, slower_milli), strict=True):
            one = Observation(
                component=Component.EXECUTION,
                predicted_us=1_000_000,
                factor_milli=1_000,
                actual_us=actual_us * scale // 1_000,
                at_least=False,
            )
            book.observe(place, one, number * 6_000_000)
    located = [sum(table.popitem()[1].effect(10**7) for table in book.components[Component.EXECUTION].tables.values()) for book in books]
    assert located[1] >= located[0] - 8
