"""Compiled code by its key: what needs other code has another form, what runs elsewhere has another key, and nothing else does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.model.compiled import Environment, artifact_key, form_of, needed_form, parse_artifact_key, parse_form, rank_bucket
from atoll.model.errors import FieldError
from atoll.model.gpu import CPU, GpuType
from atoll.model.ids import FormId, GpuTypeId, ModelId
from atoll.model.modelspec import DenoiserKind
from atoll.model.shape import Precision
from atoll.physics.coldstart import artifact_load_us, compile_us
from atoll.physics.execution import execution_us, stack_of
from atoll.physics.stack import Stack
from tests.unit.fleet_of_machines import GPUS, model, spec

COMPILED = replace(model("m"), compiled=True)
SHAPE = spec().shape
HERE = Environment(torch="2.13.0", triton="3.7.0", cuda="13.0", processor="H100-SXM")


def test_steps_share_code_and_nothing_else_of_a_shape_does() -> None:
    form = form_of(COMPILED, SHAPE)
    assert form == form_of(COMPILED, replace(SHAPE, steps=SHAPE.steps + 1))
    sizes = {"width": 512, "height": 512, "frames": 5, "batch": 2, "cfg_passes": SHAPE.cfg_passes + 1}
    others = [form_of(COMPILED, replace(SHAPE, **{name: value})) for name, value in sizes.items()]
    assert len({form, *others}) == len(sizes) + 1
    assert form_of(COMPILED, replace(SHAPE, width=512, height=1024)) != form_of(COMPILED, replace(SHAPE, width=1024, height=512))


def test_weights_and_precision_are_part_of_it_and_names_are_not() -> None:
    form = form_of(COMPILED, SHAPE)
    assert form != form_of(replace(COMPILED, weights_digest="sha256:" + "1" * 64), SHAPE)
    assert form != form_of(replace(COMPILED, precision=Precision.FP32), SHAPE)
    assert form == form_of(replace(COMPILED, title="Other", origin_path="elsewhere"), SHAPE)
    unheard = replace(COMPILED, weights_digest="")
    assert form_of(unheard, SHAPE) != form_of(replace(unheard, model_id=ModelId("n")), SHAPE)


def test_adapters_count_by_their_number_and_the_bucket_of_the_highest_rank() -> None:
    assert _beside() == form_of(COMPILED, SHAPE) != _beside(16)
    assert _beside(9) == _beside(16) != _beside(17)
    assert _beside(16, 4) == _beside(4, 16) == _beside(16, 16) != _beside(16)
    assert [rank_bucket(rank) for rank in (0, 1, 2, 3, 16, 17, 1_024)] == [0, 1, 2, 4, 16, 32, 1_024]


def _beside(*ranks: int) -> FormId:
    return form_of(COMPILED, SHAPE, ranks)


@pytest.mark.parametrize("field", ["torch", "triton", "cuda", "processor"])
def test_each_part_of_an_environment_makes_another_key(field: str) -> None:
    form = form_of(COMPILED, SHAPE)
    assert artifact_key(form, HERE) != artifact_key(form, replace(HERE, **{field: "other"}))
    assert artifact_key(form, HERE) == artifact_key(form, replace(HERE))


def test_parts_do_not_run_into_each_other() -> None:
    form = form_of(COMPILED, SHAPE)
    one, other = replace(HERE, triton="3.7.01", cuda="3.0"), replace(HERE, triton="3.7.0", cuda="13.0")
    assert artifact_key(form, one) != artifact_key(form, other)


def test_a_model_that_is_not_compiled_and_a_gang_need_no_code() -> None:
    assert needed_form(model("m"), SHAPE, 1) is None
    assert needed_form(COMPILED, SHAPE, 2) is None
    assert needed_form(COMPILED, SHAPE, 1, [8]) == form_of(COMPILED, SHAPE, [8])
    hopper, other = replace(GPUS[GpuTypeId("big")], arch="Hopper"), replace(GPUS[GpuTypeId("big")], arch="Ampere")
    for gpu, eager, compiled in ((hopper, Stack.EAGER_CUDNN, Stack.COMPILE_CUDNN), (other, Stack.EAGER, Stack.COMPILE)):
        assert [stack_of(model("m"), gpu), stack_of(COMPILED, gpu), stack_of(COMPILED, gpu, 2)] == [eager, compiled, eager]


@given(st.text(max_size=40))
def test_only_what_the_functions_make_is_a_form_or_a_key(text: str) -> None:
    fits = len(text) == 32 and set(text) <= set("0123456789abcdef")
    for parse in (parse_form, parse_artifact_key):
        if fits:
            assert parse("compiled", text) == text
        else:
            with pytest.raises(FieldError, match="compiled"):
                parse("compiled", text)


def test_code_that_is_there_is_run_sooner_than_code_that_has_to_be_made_and_runs_faster_than_none() -> None:
    gpu = GPUS[GpuTypeId("big")]
    cpu = replace(gpu, gpu_type=CPU)
    unet = replace(COMPILED, physics=replace(COMPILED.physics, kind=DenoiserKind.UNET))
    for one in (COMPILED, unet):
        for where in (gpu, cpu):
            assert 0 < artifact_load_us(one, where) < compile_us(one, where)
    assert _execution_us(gpu, compiled=True) < _execution_us(gpu, compiled=False)


def _execution_us(gpu: GpuType, *, compiled: bool) -> int:
    return execution_us(replace(model("m"), compiled=compiled), SHAPE, gpu, Precision.BF16)
