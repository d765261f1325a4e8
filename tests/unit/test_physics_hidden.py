"""The hidden world: it repeats itself, it differs from the prior, and no order of questions changes an answer."""

from __future__ import annotations

import math
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.model.errors import FieldError
from atoll.model.ids import GpuTypeId, ModelId, SiteId
from atoll.model.shape import Precision
from atoll.packaged import load_packaged
from atoll.physics.coldstart import init_us, stage_us, transfer_us
from atoll.physics.execution import execution_us
from atoll.physics.hidden import HiddenWorld

REPOSITORY = Path(__file__).resolve().parents[2]
CATALOGUE = load_packaged()
MODEL = next(model for model in CATALOGUE.models if model.model_id == ModelId("flux.1-dev"))
GPU = CATALOGUE.gpus[GpuTypeId("H100-SXM")]
SITE = SiteId("aws-use1")
GB = 10**9


def _execution(world: HiddenWorld, site: str, key: str) -> int:
    return world.execution_us(MODEL, MODEL.default_shape, GPU, Precision.BF16, SiteId(site), key)


def answers_of_a_world() -> tuple[int, ...]:
    """Some durations of one world, to be compared between interpreters."""
    world = HiddenWorld(3)
    return (
        _execution(world, "s", "j/1"),
        world.stage_us(MODEL, GB, GB, False, SITE, "j/1"),
        world.fetch_us(GB, GB, 5, SITE, "j/1"),
        world.init_us(MODEL, SITE, "j/1"),
    )


def test_the_same_question_has_the_same_answer_in_any_order() -> None:
    questions = [(f"site-{number % 7}", f"job-{number}/1") for number in range(60)]
    one, other = HiddenWorld(7), HiddenWorld(7)
    forward = {question: _execution(one, *question) for question in questions}
    backward = {question: _execution(other, *question) for question in reversed(questions)}
    assert forward == backward
    assert forward == {question: _execution(one, *question) for question in questions}


def test_other_noise_leaves_sites_and_models_as_they_are() -> None:
    own, one, other = HiddenWorld(7), HiddenWorld(7, noise_seed=1), HiddenWorld(7, noise_seed=2)
    for component in ("execution", "fetch", "stage", "init"):
        assert own.factor_milli(component, SITE) == one.factor_milli(component, SITE) == other.factor_milli(component, SITE)
    assert own.fit_milli(MODEL, GPU) == one.fit_milli(MODEL, GPU) == other.fit_milli(MODEL, GPU)
    keys = [f"job-{number}/1" for number in range(200)]
    durations = [[_execution(world, "s", key) for key in keys] for world in (own, one, other)]
    # Noise is in thousandths: two of some hundreds are alike now and then.
    assert sum(mine == others for mine, others in zip(durations[1], durations[2], strict=True)) < len(keys) // 20
    # All about the same level: noise has 6 % to either side, and its mean over 200 is known to half a per cent.
    assert max(map(sum, durations)) < min(map(sum, durations)) * 1.03
    modes = [[world.mode_milli("fetch", SITE, key) for key in keys] for world in (one, other)]
    assert modes[0] != modes[1] and set(modes[0]) == set(modes[1])
    assert [_execution(HiddenWorld(7, noise_seed=7), "s", key) for key in keys] == durations[0], "its own, where none is given"


def test_another_interpreter_with_other_hashes_agrees() -> None:
    program = "from tests.unit import test_physics_hidden as t; print(t.answers_of_a_world())"
    answers = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        answers.add(done.stdout.strip())
    answers.add(str(answers_of_a_world()))
    assert len(answers) == 1


def test_seeds_sites_and_attempts_differ() -> None:
    assert _execution(HiddenWorld(1), "a", "j/1") != _execution(HiddenWorld(2), "a", "j/1")
    world = HiddenWorld(1)
    assert len({_execution(world, f"s{number}", "j/1") for number in range(36)}) == 36
    assert len({_execution(world, "s", f"j/{number}") for number in range(36)}) > 18


def test_names_do_not_run_into_each_other() -> None:
    world = HiddenWorld(1)
    assert _execution(world, "ab", "c") != _execution(world, "a", "bc")


@pytest.mark.parametrize("component", ["execution", "fetch", "stage", "init"])
def test_site_factors_are_log_normal_with_the_asked_spread(component: str) -> None:
    world = HiddenWorld(11, sigma=0.4)
    logs = [math.log(world.factor_milli(component, SiteId(f"s{number}")) / 1_000) for number in range(3_000)]
    assert abs(statistics.fmean(logs)) < 0.03
    assert statistics.stdev(logs) == pytest.approx(0.4, rel=0.06)


def test_components_of_a_site_are_independent() -> None:
    world = HiddenWorld(5)
    sites = [SiteId(f"s{number}") for number in range(500)]
    execution = [world.factor_milli("execution", site) for site in sites]
    fetch = [world.factor_milli("fetch", site) for site in sites]
    assert abs(statistics.correlation(execution, fetch)) < 0.15


def test_an_attempt_repeats_its_site_within_its_noise() -> None:
    world = HiddenWorld(5)
    prior = execution_us(MODEL, MODEL.default_shape, GPU, Precision.BF16)
    level = world.factor_milli("execution", SITE) * world.fit_milli(MODEL, GPU) / 1_000_000
    ratios = [_execution(world, SITE, f"j{number}/1") / prior / level for number in range(500)]
    assert statistics.median(ratios) == pytest.approx(1, abs=0.02)
    assert 0.03 < statistics.stdev(ratios) < 0.1


def test_a_model_suits_a_gpu_type_alike_at_every_site() -> None:
    world = HiddenWorld(5)
    fits = {(model.model_id, gpu.gpu_type): world.fit_milli(model, gpu) for model in CATALOGUE.models for gpu in CATALOGUE.gpus.values()}
    assert statistics.stdev(math.log(fit / 1_000) for fit in fits.values()) == pytest.approx(0.35 / 2, rel=0.1)
    assert fits[MODEL.model_id, GPU.gpu_type] == world.fit_milli(MODEL, GPU)


def test_no_site_is_further_off_than_three_deviations() -> None:
    world = HiddenWorld(5, sigma=1.0)
    factors = [world.factor_milli("fetch", SiteId(f"s{number}")) for number in range(5_000)]
    assert math.exp(-3) * 999 < min(factors) and max(factors) < math.exp(3) * 1_001


def test_loads_have_two_modes_a_third_of_them_fast() -> None:
    world = HiddenWorld(5)
    prior = stage_us(MODEL, GB, 50 * GB, False)
    level = world.factor_milli("stage", SITE) / 1_000
    ratios = [world.stage_us(MODEL, GB, 50 * GB, False, SITE, f"j{number}/1") / prior / level for number in range(1_500)]
    fast = [ratio for ratio in ratios if ratio < 0.7]
    slow = [ratio for ratio in ratios if ratio >= 0.7]
    assert len(fast) / len(ratios) == pytest.approx(1 / 3, abs=0.05)
    assert statistics.median(slow) / statistics.median(fast) == pytest.approx(8, rel=0.1)
    assert max(fast) < min(slow)


def test_fetches_have_two_modes_and_host_memory_has_one() -> None:
    world = HiddenWorld(5)
    fetched = [world.fetch_us(10 * GB, GB, 0, SITE, f"j{number}/1") / transfer_us(10 * GB, GB, 0) for number in range(400)]
    hosted = [world.stage_us(MODEL, GB, GB, True, SITE, f"j{number}/1") for number in range(400)]
    assert max(fetched) / min(fetched) > 6
    assert max(hosted) / min(hosted) < 3


def test_no_world_equals_the_prior() -> None:
    world = HiddenWorld(5)
    sites = [SiteId(f"s{number}") for number in range(100)]
    prior = init_us(MODEL)
    off = [abs(math.log(world.init_us(MODEL, site, "j/1") / prior)) for site in sites]
    assert statistics.median(off) > 0.15


@pytest.mark.parametrize("sigma", [0.0, 0.29, -1.0, 1.01, float("nan"), float("inf"), "0.4", True])
def test_a_spread_that_proves_nothing_is_refused(sigma: object) -> None:
    with pytest.raises(FieldError, match=r"sigma is .*expected a number from 0\.3 to 1\.0"):
        HiddenWorld(1, sigma)  # type: ignore[arg-type]  # what a configuration might hold


def test_durations_are_positive_whole_numbers() -> None:
    world = HiddenWorld(5)
    answers = (world.fetch_us(0, GB, 0, SITE, "j"), world.stage_us(MODEL, 10**18, 10**18, False, SITE, "j"), world.init_us(MODEL, SITE, ""))
    for found in answers:
        assert isinstance(found, int) and found >= 1


def test_the_orchestrator_and_the_deciding_cores_never_see_it() -> None:
    for folder in ("orchestrator", "agents/core", "atoll/model", "atoll/catalog"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"atoll\.physics(\.| import .*\b)hidden|HiddenWorld", text), path
