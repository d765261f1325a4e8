"""Learning where jobs are shorter than what a job takes besides its work: a GPU's first ones, and starter models."""

from __future__ import annotations

import pytest

from atoll.model.ids import GpuTypeId, ModelId, SiteId
from atoll.model.learned import Component
from orchestrator.core.learning.book import Book
from orchestrator.core.learning.corrections import Place
from orchestrator.core.learning.observation import Observation


def test_jobs_of_a_fraction_of_a_second_say_little_of_others() -> None:
    """What a GPU's first jobs took (a tiny pipeline: 0.16 s predicted, 1.1 s with the kernels that were loaded, then 0.14 to 0.28 s)."""
    place = Place(model_id=ModelId("tiny"), gpu_type=GpuTypeId("H200"), site_id=SiteId("s"))
    taken = {Component.EXECUTION: Book(), Component.UPLOAD: Book()}
    for component, book in taken.items():
        for number, actual_us in enumerate((1_136_000, 139_000, 268_000, 282_000, 195_000, 222_000, 613_000, 144_000), 1):
            factors = book.factors_milli(ModelId("tiny"), GpuTypeId("H200"), SiteId("s"))
            factor_milli = factors[list(Component).index(component)]
            predicted_us = 157_000 * factor_milli // 1_000
            seen = Observation(
                component=component, predicted_us=predicted_us, factor_milli=factor_milli, actual_us=actual_us, at_least=False
            )
            book.observe(place, seen, number * 60_000_000)
            book.refresh(number * 60_000_000)
    others = {
        component: book.factors_milli(ModelId("large"), GpuTypeId("H200"), SiteId("s"))[list(Component).index(component)]
        for component, book in taken.items()
    }
    assert 1_000 <= others[Component.EXECUTION] < 1_450, others
    assert others[Component.UPLOAD] > 1_700, "of a component without such a part they say more"


def test_a_correction_that_is_right_stays_so_however_short_the_jobs() -> None:
    place = Place(model_id=ModelId("m"), gpu_type=GpuTypeId("H200"), site_id=SiteId("s"))
    book = Book()
    index = list(Component).index(Component.EXECUTION)
    for number in range(1, 400):
        factor_milli = book.factors_milli(place.model_id, place.gpu_type, place.site_id)[index]
        prior_us = 1_000_000
        seen = Observation(
            component=Component.EXECUTION,
            predicted_us=prior_us * factor_milli // 1_000,
            factor_milli=factor_milli,
            actual_us=2 * prior_us,
            at_least=False,
        )
        book.observe(place, seen, number * 60_000_000)
        book.refresh(number * 60_000_000)
    assert book.factors_milli(place.model_id, place.gpu_type, place.site_id)[index] == pytest.approx(2_000, rel=0.05)
