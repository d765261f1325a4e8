"""More models and more load out of the same requests: nothing is lost, nothing is drawn anew."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

import pytest

from atoll.model.errors import FieldError
from atoll.model.ids import ModelId, TenantId
from sims.traces.job import TraceJob
from sims.traces.shaping import copied, faster, first
from sims.traces.statistics import Lru, independent_hit_share
from sims.traces.variants import base_of
from tests.unit.traces_made import jobs

DAY_US = 86_400_000_000


def three_days() -> Iterator[TraceJob]:
    """A job an hour, two models in turn by the day."""
    for hour in range(72):
        model = ModelId("sd-1.5" if hour // 24 % 2 else "sdxl-base-1.0--x")
        yield TraceJob(arrival_us=hour * 3_600_000_000, model_id=model, tenant=TenantId("t"), session=f"s{hour // 24}", steps=hour)


def test_copies_have_names_of_their_own_and_lose_nothing() -> None:
    found = list(copied(three_days, 4)())
    assert len(found) == 4 * 72
    assert [job.arrival_us for job in found] == sorted(job.arrival_us for job in found)
    assert Counter(job.tenant for job in found) == {"t": 72, "t.c1": 72, "t.c2": 72, "t.c3": 72}
    assert {base_of(job.model_id) for job in found} == {"sd-1.5", "sdxl-base-1.0"}
    assert len({job.model_id for job in found}) == 8
    assert [job for job in found if job.tenant == "t"] == list(three_days())


def test_copies_keep_the_time_of_day_and_the_order_of_sessions() -> None:
    """A copy is turned round: where that cuts a session its end comes first, and in each part nothing changes places."""
    found = list(copied(three_days, 4)())
    for tenant in ("t.c1", "t.c2", "t.c3"):
        own = [job for job in found if job.tenant == tenant]
        for session in {job.session for job in own}:
            steps = [job.steps for job in own if job.session == session]
            assert sum(later < step for step, later in itertools.pairwise(steps)) <= (tenant == "t.c3")
    stagger_us = {"t": 0, "t.c1": 0, "t.c2": 0, "t.c3": 420_000_000}
    assert all((job.arrival_us + stagger_us[job.tenant]) % DAY_US == job.steps % 24 * 3_600_000_000 for job in found)


def test_faster_divides_arrivals_alone() -> None:
    slow, quick = list(jobs(100)), list(faster(lambda: jobs(100), 2_500)())
    assert [job.arrival_us for job in quick] == [job.arrival_us * 2 // 5 for job in slow]
    assert [job.deadline_ms for job in quick] == [job.deadline_ms for job in slow]
    assert list(first(lambda: jobs(100), 7)()) == slow[:7]


def test_figures_that_cannot_be_are_named() -> None:
    with pytest.raises(FieldError, match="copies is 0"):
        copied(three_days, 0)
    with pytest.raises(FieldError, match="speed is '0'"):
        faster(three_days, 0)
    with pytest.raises(FieldError, match="expected a factor with which all jobs come within"):
        list(faster(lambda: iter([TraceJob(arrival_us=10**14, model_id=ModelId("m"), tenant=TenantId("t"))]), 1)())


def test_hits_of_a_cache_by_hand() -> None:
    cache = Lru(2)
    for name in "abacab":
        cache.use(name)
    assert (cache.hits, cache.uses) == (2, 6)  # a after b, a after c; b was forgotten for c
    assert independent_hit_share({"a": 1, "b": 1, "c": 1, "d": 1}, 2) == pytest.approx(0.5, abs=0.01)
    assert independent_hit_share({}, 2) == 0
