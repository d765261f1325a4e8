"""Made-up traces: the same settings give the same jobs, all of them can be made, and they are like what was measured of a real service."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from dataclasses import replace

import pytest

from atoll import data
from atoll.catalog.gpus import parse_gpus
from atoll.catalog.models import parse_models_csv
from atoll.model.errors import FieldError
from atoll.model.ids import GpuTypeId, ModelId
from atoll.model.job import Priority
from atoll.model.modelspec import Modality
from atoll.model.splits import check_gang
from atoll.physics.estimate import predict_us
from atoll.physics.fitted import FITTED
from atoll.physics.terms import Run
from sims.traces.catalogue import IMAGE_BASES, VIDEO_BASES, sized
from sims.traces.generating import REGIONS, Generator, Settings
from sims.traces.job import PIXELS_4K, TraceJob
from sims.traces.popularity import MEASURED_EXPONENT
from sims.traces.statistics import statistics_of
from sims.traces.variants import base_of, spec_of

CATALOGUE = {model.model_id: model for model in parse_models_csv(data.models_csv(), "models.csv")}
REFERENCE = parse_gpus(data.gpus_csv(), "gpus.csv")[GpuTypeId("A100-80-SXM")]
# Of the size of the trace that the figures below were measured in: 17 days of 40 requests an hour for a hundred models.
LIKE_MEASURED = Settings(models=100, hours=391, jobs_per_hour=40, tenants=2_657, launches=False, zipf_exponent=MEASURED_EXPONENT)


def made(settings: Settings) -> list[TraceJob]:
    return list(Generator(settings, CATALOGUE, REFERENCE).jobs())


@pytest.fixture(scope="module")
def day() -> list[TraceJob]:
    """A day of 600 models, at a quarter of the jobs."""
    return made(Settings(jobs_per_hour=1_000, deadlines=True))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_requests_repeat_as_in_the_real_service(seed: int) -> None:
    """The order carries what a draw of each job for itself would lose: 85 of 100 against 70. And the rest of what was measured there."""
    found = statistics_of(made(replace(LIKE_MEASURED, seed=seed)), CATALOGUE).summary()
    assert found["lru8_models"] == pytest.approx(0.85, abs=0.03)
    assert found["lru8_models_independent"] == pytest.approx(0.70, abs=0.03)
    assert found["same_model_share"] == pytest.approx(0.72, abs=0.05)
    assert found["same_adapters_share"] == pytest.approx(0.74, abs=0.05)
    assert found["top_tenants_share"] == pytest.approx(0.28, abs=0.06)
    assert found["gap_cv"] == pytest.approx(12, abs=1.5)
    assert found["lru10_adapters"] > 0.5
    assert found["lru10_adapters_independent"] < 0.15


def test_the_same_settings_give_the_same_trace() -> None:
    few = Settings(hours=0.2)
    assert made(few) == made(few)
    assert made(few) != made(replace(few, seed=1))


def test_another_share_of_films_does_not_move_the_arrivals() -> None:
    few = Settings(hours=0.2)
    assert [job.arrival_us for job in made(few)] == [job.arrival_us for job in made(replace(few, video_share=0.5))]


def test_every_job_can_be_made(day: list[TraceJob]) -> None:
    for job in {(job.model_id, job.width, job.height, job.frames): job for job in day}.values():
        spec = spec_of(job.model_id, CATALOGUE)
        shape = job.shape_with(spec.default_shape).check()
        spec.check_shape(shape)
        assert all(use.adapter_id for use in job.adapters)
    assert [job.arrival_us for job in day] == sorted(job.arrival_us for job in day)


def test_the_day_has_hundreds_of_models_and_customers_of_fourteen(day: list[TraceJob]) -> None:
    of_tenant: dict[str, set[str]] = defaultdict(set)
    for job in day:
        of_tenant[job.tenant].add(job.model_id)
    assert len({job.model_id for job in day}) > 250
    assert max(map(len, of_tenant.values())) >= 14
    kinds = statistics_of(day, CATALOGUE).summary()["kinds"]
    assert kinds["video"] / len(day) == pytest.approx(0.08, abs=0.04)
    assert 0.005 < kinds["image-4k"] / len(day) < 0.05


def test_a_film_costs_a_hundred_pictures_and_4k_ten() -> None:
    """As seconds on one GPU, per result, over the models that made-up ones are fine-tunes of."""

    def mean_s(bases: dict[str, int], side_px: tuple[int, int] | None = None) -> float:
        total = 0.0
        for model_id, weight in bases.items():
            spec = CATALOGUE[ModelId(model_id)]
            shape = spec.default_shape
            if side_px is not None:
                shape = replace(shape, width=side_px[0], height=side_px[1])
            total += weight * predict_us(FITTED, Run(model=spec, shape=shape, gpu=REFERENCE, precision=spec.precision)) / 1e6
        return total / sum(bases.values())

    flux = {"flux.1-dev": 1}
    assert 50 < mean_s(VIDEO_BASES) / mean_s(IMAGE_BASES) < 200
    assert 7 < mean_s(flux, sized((16, 9), PIXELS_4K, 16)) / mean_s(flux) < 20


def test_deadlines_are_twice_the_execution_and_ten_seconds(day: list[TraceJob]) -> None:
    job = day[0]
    spec = spec_of(job.model_id, CATALOGUE)
    run = Run(model=spec, shape=job.shape_with(spec.default_shape), gpu=REFERENCE, precision=spec.precision)
    assert job.deadline_ms == 2 * predict_us(FITTED, run) // 1_000 + 10_000
    assert all(job.deadline_ms for job in day)


def test_each_region_has_its_own_day() -> None:
    """Tokyo asks most while Virginia sleeps: in the eight hours around its afternoon 2.3 times as much as around its small hours."""
    by_hour = {region: [0] * 24 for region in REGIONS}
    for job in made(Settings(jobs_per_hour=1_000, hours=72, gap_cv=1)):
        by_hour[job.origin][job.arrival_us // 3_600_000_000 % 24] += 1

    def asked(region: str, hours: range) -> int:
        return sum(by_hour[region][hour % 24] for hour in hours)

    assert asked("Tokyo", range(2, 10)) / asked("Tokyo", range(14, 22)) == pytest.approx(2.3, abs=0.3)
    assert asked("N. Virginia", range(16, 24)) / asked("N. Virginia", range(4, 12)) == pytest.approx(2.3, abs=0.3)


def test_launches_come_and_are_used() -> None:
    """Ten days of launches: some of what is asked for at the end was not there at the beginning."""
    jobs = made(Settings(hours=240, jobs_per_hour=100))
    launched = {job.model_id for job in jobs if int(job.model_id.rsplit("m", 1)[1]) >= 600}
    assert len(launched) > 3
    assert min(index for index, job in enumerate(jobs) if job.model_id in launched) > 0
    assert all(base_of(model_id) in CATALOGUE for model_id in launched)


def test_films_only_and_pictures_only() -> None:
    for share, modality in ((0.0, Modality.IMAGE), (1.0, Modality.VIDEO)):
        jobs = made(Settings(hours=0.1, video_share=share))
        assert {spec_of(job.model_id, CATALOGUE).modality for job in jobs} == {modality}


def test_a_setting_that_cannot_be_is_named() -> None:
    for wrong in ({"models": 0}, {"hours": float("nan")}, {"video_share": 1.5}, {"jobs_per_hour": -1.0}):
        with pytest.raises(FieldError, match=f"^{next(iter(wrong))} is .*: expected a number from"):
            made(replace(Settings(), **wrong))


def test_gaps_vary_as_much_as_asked_for() -> None:
    for cv in (0.0, 0.5, 1.0, 4.0):
        jobs = made(Settings(hours=24, jobs_per_hour=1_000, gap_cv=cv, diurnal=False))
        gaps = [later.arrival_us - job.arrival_us for job, later in itertools.pairwise(jobs)]
        mean = sum(gaps) / len(gaps)
        assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 / mean == pytest.approx(cv, rel=0.1, abs=0.001)


def test_sessions_have_priorities_and_films_are_made_on_several_gpus() -> None:
    settings = Settings(jobs_per_hour=3_000, hours=2, urgent_share=0.1, batch_share=0.3, gang_share=0.5, video_share=0.5)
    jobs = made(settings)
    of_sessions = {job.session: job.priority for job in jobs}
    assert all(job.priority is of_sessions[job.session] for job in jobs)
    counts = Counter(of_sessions.values())
    assert counts[Priority.URGENT] / len(of_sessions) == pytest.approx(0.1, abs=0.03)
    assert counts[Priority.BATCH] / len(of_sessions) == pytest.approx(0.3, abs=0.04)
    gangs = [job for job in jobs if job.gang_size > 1]
    films = [job for job in jobs if spec_of(job.model_id, CATALOGUE).modality is Modality.VIDEO]
    assert {job.gang_size for job in gangs} >= {2, 4} and {job.gang_size for job in gangs} <= {2, 4, 8}
    assert len(gangs) / len(films) == pytest.approx(0.5, abs=0.15)
    for job in gangs:
        model = spec_of(job.model_id, CATALOGUE)
        check_gang(model, job.shape_with(model.default_shape), job.gang_size)
    # Everything else is as it is without them.
    plain = made(replace(settings, urgent_share=0, batch_share=0, gang_share=0))
    assert [replace(job, priority=Priority.NORMAL, gang_size=1) for job in jobs] == plain
