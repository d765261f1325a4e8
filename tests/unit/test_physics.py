"""Physics against figures that were counted or published elsewhere, and against sums done by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from atoll.model.gpu import CPU, GpuType
from atoll.model.ids import GpuTypeId, ModelId
from atoll.model.modelspec import DenoiserKind, Modality, ModelPhysics, ModelSpec
from atoll.model.shape import Precision, Shape
from atoll.packaged import load_packaged
from atoll.physics.coldstart import init_us, stage_us, transfer_us
from atoll.physics.estimate import predict_us
from atoll.physics.execution import eta_milli, execution_us, likeness
from atoll.physics.fitted import FITTED
from atoll.physics.flops import decode_flops, forward_flops, generation_flops, latent_frames, text_flops, tokens
from atoll.physics.memory import fitting, needed_bytes, peak_bytes
from atoll.physics.output import output_bytes
from atoll.physics.peaks import peak_flops
from atoll.physics.stack import Stack
from atoll.physics.terms import Run

TERA = 10**12
GB = 10**9
CATALOGUE = load_packaged()
MODELS = {model.model_id: model for model in CATALOGUE.models}
GPUS = CATALOGUE.gpus


def _model(name: str) -> ModelSpec:
    return MODELS[ModelId(name)]


def _gpu(name: str) -> GpuType:
    return GPUS[GpuTypeId(name)]


def _seconds(name: str, gpu: str, shape: Shape | None = None) -> float:
    model = _model(name)
    return execution_us(model, shape or model.default_shape, _gpu(gpu), Precision.BF16) / 1e6


def test_flux_at_1024_by_hand() -> None:
    model = _model("flux.1-dev")
    shape = Shape(width=1024, height=1024, steps=28)
    # An autoencoder of 8 and patches of 2: 64 x 64.
    assert tokens(model.physics, shape) == 4_096
    # 2 x 6.457e9 x (4096 + 512) = 59.51 TFLOP, and 4 x 57 layers x 4608^2 x 3072 = 14.87.
    assert forward_flops(model.physics, shape) == pytest.approx(74.38 * TERA, rel=1e-3)
    # 28 forwards, 2 x 4.885e9 x 512 of text, 10.47 of decoding.
    assert generation_flops(model.physics, shape) == pytest.approx((28 * 74.38 + 5.0 + 10.47) * TERA, rel=1e-3)
    # A quarter of the pixels: 1024 tokens, so 2 x 6.457e9 x 1536 + 4 x 57 x 1536^2 x 3072.
    small = replace(shape, width=512, height=512)
    assert tokens(model.physics, small) == 1_024
    assert forward_flops(model.physics, small) == pytest.approx((19.84 + 1.65) * TERA, rel=1e-2)


def test_wan_at_720p_by_hand() -> None:
    model = _model("wan2.1-t2v-14b-720p")
    shape = Shape(width=1280, height=720, frames=81, steps=50, cfg_passes=2)
    # 81 frames are 1 + 80 / 4 = 21 of latent; 1280 x 720 / 16 / 16 = 3600 each.
    assert latent_frames(model.physics, 81) == 21
    assert tokens(model.physics, shape) == 21 * 3_600
    assert forward_flops(model.physics, shape) == pytest.approx(6_523 * TERA, rel=1e-2)
    # A forward takes 6.5e15; 50 steps of two passes are 6.5e17, and all else is under a thousandth.
    assert generation_flops(model.physics, shape) == pytest.approx(652_983 * TERA, rel=1e-2)


def test_frames_beyond_the_first_are_packed_by_the_temporal_factor() -> None:
    physics = _model("wan2.1-t2v-14b-720p").physics
    assert [latent_frames(physics, frames) for frames in (1, 2, 5, 6, 81)] == [1, 2, 2, 3, 21]


def test_formula_meets_the_counted_flops_of_every_transformer() -> None:
    """Counted on diffusers' own classes; HunyuanImage 3.0 is left out: an autoregressive model whose row has no counted attention."""
    checked = 0
    for model in CATALOGUE.models:
        physics = model.physics
        if physics.kind is not DenoiserKind.TRANSFORMER or not physics.reference_attention_flops:
            continue
        checked += 1
        found = forward_flops(physics, physics.reference)
        assert found == pytest.approx(physics.reference_forward_flops, rel=0.01), model.model_id
    assert checked >= 55


def test_unets_and_linear_attention_meet_their_tables() -> None:
    kinds = {model.physics.kind for model in CATALOGUE.models}
    assert kinds == set(DenoiserKind)
    for model in CATALOGUE.models:
        physics = model.physics
        if physics.kind is not DenoiserKind.TRANSFORMER:
            assert forward_flops(physics, physics.reference) == pytest.approx(physics.reference_forward_flops, rel=1e-6), model.model_id


@pytest.mark.parametrize(
    ("known", "other", "tolerance"),
    [
        # Each pair was counted apart: from the first row's figures physics must find the second's.
        ("wan2.1-t2v-14b-480p", "wan2.1-t2v-14b-720p", 0.01),
        ("hunyuanvideo-t2v-540p", "hunyuanvideo-t2v-720p", 0.01),
        ("ltx-2-19b-720p-av", "ltx-2-19b-1080p-av", 0.04),
        ("ltx-2-19b-720p-av", "ltx-2-19b-4k-av", 0.06),
        ("sana-1.6b", "sana-1.6b-4k", 0.06),
        ("sd-1.5", "sd-2.1-768", 0.02),
        ("sdxl-base-1.0", "sdxl-turbo", 0.05),
    ],
)
def test_other_sizes_of_a_model_are_predicted_from_one(known: str, other: str, tolerance: float) -> None:
    truth = _model(other).physics
    assert forward_flops(_model(known).physics, truth.reference) == pytest.approx(truth.reference_forward_flops, rel=tolerance)


def test_parts_of_a_generation_add_up() -> None:
    model = _model("sd3.5-medium")
    shape = replace(model.default_shape, steps=7, cfg_passes=2, batch=3)
    physics = model.physics
    one = text_flops(physics) + 14 * forward_flops(physics, shape) + decode_flops(physics, shape)
    assert generation_flops(physics, shape) == 3 * one


@pytest.mark.parametrize(
    ("name", "gpu", "steps", "published_s"),
    [
        # Published times of one GPU, 16-bit, eager, nothing cached: the prior must be right within a third, learning does the rest.
        ("wan2.1-t2v-14b-720p", "H100-SXM", 50, 1_837.9),
        ("wan2.1-t2v-1.3b-480p", "RTX-4090", 50, 261.4),
        ("wan2.1-t2v-14b-720p", "H20", 50, 6_935.5),
        ("hunyuanvideo-t2v-720p", "L20", 50, 6_043.9),
        ("flux.1-schnell", "A100-80-SXM", 4, 2.18),
        ("flux.1-schnell", "L40", 4, 3.18),
        ("flux.1-dev", "H100-SXM", 28, 6.7),
        ("wan2.2-ti2v-5b-720p", "RTX-4090", 50, 534.7),
    ],
)
def test_times_are_near_published_ones(name: str, gpu: str, steps: int, published_s: float) -> None:
    shape = replace(_model(name).default_shape, steps=steps)
    found_us = execution_us(_model(name), shape, _gpu(gpu), Precision.BF16, stack=Stack.EAGER)
    assert 0.7 < found_us / 1e6 / published_s < 1.4


def test_every_gpu_of_the_catalogue_is_ranked_plausibly() -> None:
    seconds = {name: _seconds("flux.1-dev", name) for name in GPUS}
    ladder = ["GB200", "H100-SXM", "A100-80-SXM", "L40", "L4", "T4", "cpu"]
    assert sorted(ladder, key=lambda name: seconds[GpuTypeId(name)]) == ladder
    for name, gpu in GPUS.items():
        for kind in DenoiserKind:
            for precision in Precision:
                assert 0 < eta_milli(gpu, kind, precision) <= 1_000, (name, kind, precision)


def test_a_narrow_format_helps_only_where_there_are_units_for_it() -> None:
    model = _model("flux.1-dev")
    times = {
        (gpu, precision): execution_us(model, model.default_shape, _gpu(gpu), precision)
        for gpu in ("H100-SXM", "A100-80-SXM")
        for precision in (Precision.BF16, Precision.FP8)
    }
    assert times["H100-SXM", Precision.FP8] < times["H100-SXM", Precision.BF16]
    assert times["A100-80-SXM", Precision.FP8] == times["A100-80-SXM", Precision.BF16]


def test_bf16_without_units_costs_what_fp32_costs() -> None:
    assert peak_flops(_gpu("T4"), Precision.BF16) == _gpu("T4").fp32_flops
    assert peak_flops(_gpu("T4"), Precision.FP16) == _gpu("T4").fp16_flops


def test_memory_bandwidth_bounds_a_model_that_reads_more_than_it_computes() -> None:
    """One token through 40 GB of weights: the time is that of reading them."""
    shape = Shape(width=8, height=8, steps=10)
    physics = ModelPhysics(
        kind=DenoiserKind.TRANSFORMER, denoiser_params=20 * GB, tokenwise_params=20 * GB, text_params=0, vae_params=0, layers=1, hidden=1,
        text_tokens=0, reference=shape, reference_tokens=1, reference_forward_flops=40 * GB, reference_attention_flops=0,
        reference_decode_flops=0,
    )  # fmt: skip
    model = replace(_model("flux.1-dev"), physics=physics, default_shape=shape)
    gpu = _gpu("A100-80-SXM")
    reading_us = 10 * 40 * GB * 10**6 / (gpu.memory_bytes_per_s * 0.75)
    # Ten forwards of one layer, each launched in about 0.3 ms.
    assert execution_us(model, shape, gpu, Precision.BF16) == pytest.approx(reading_us + 10 * 300, rel=5e-3)


def test_tiny_pipelines_on_a_cpu_take_tenths_of_seconds() -> None:
    shape = Shape(width=128, height=128, steps=8, cfg_passes=2)
    physics = ModelPhysics(
        kind=DenoiserKind.UNET, denoiser_params=1_700_000, tokenwise_params=0, text_params=100_000, vae_params=260_000, layers=7,
        hidden=64, text_tokens=77, reference=shape, reference_tokens=333, reference_forward_flops=173_000_000,
        reference_attention_flops=5_000_000, reference_decode_flops=700_000_000,
    )  # fmt: skip
    tiny = replace(_model("sd-1.5"), physics=physics, default_shape=shape, modality=Modality.IMAGE)
    assert 100_000 < execution_us(tiny, shape, GPUS[CPU], Precision.FP32) < 3_000_000


def test_a_type_nobody_has_heard_of_gets_the_middle_of_its_kin() -> None:
    every = sorted(eta_milli(gpu, DenoiserKind.TRANSFORMER, Precision.BF16) for gpu in GPUS.values() if gpu.gpu_type != CPU)
    unknown = replace(_gpu("H100-SXM"), gpu_type=GpuTypeId("X1"), arch="None yet")
    found = eta_milli(unknown, DenoiserKind.TRANSFORMER, Precision.BF16)
    assert every[len(every) // 4] <= found <= every[-len(every) // 4]
    hopper = [
        eta_milli(gpu, DenoiserKind.TRANSFORMER, Precision.BF16)
        for gpu in GPUS.values()
        if gpu.arch == "Hopper" and gpu.gpu_type not in {"H20", "H100-SXM"}
    ]
    kin = eta_milli(replace(unknown, arch="Hopper"), DenoiserKind.TRANSFORMER, Precision.BF16)
    assert min(hopper) <= kin <= max(hopper)
    # Half a H100 by every rate takes twice as long, less the launches.
    half = replace(unknown, arch="Hopper", fp16_flops=unknown.fp16_flops // 2, memory_bytes_per_s=unknown.memory_bytes_per_s // 2)
    model = _model("wan2.1-t2v-14b-720p")
    times = [execution_us(model, model.default_shape, gpu, Precision.BF16) for gpu in (half, replace(unknown, arch="Hopper"))]
    assert times[0] / times[1] == pytest.approx(2, rel=0.01)


def test_staging_takes_its_slower_leg_and_from_host_memory_no_disk() -> None:
    model = replace(_model("flux.1-dev"), weights_bytes=34 * GB)
    assert stage_us(model, 2 * GB, 50 * GB, False) == 17_000_000
    assert stage_us(model, 100 * GB, 17 * GB, False) == 2_000_000
    assert stage_us(model, 2 * GB, 17 * GB, True) == 2_000_000


def test_building_a_pipeline_takes_longer_for_more_weights() -> None:
    # 0.2 s, and 185 ms a GB.
    assert init_us(replace(_model("flux.1-dev"), weights_bytes=10 * GB)) == 2_050_000
    assert init_us(replace(_model("flux.1-dev"), weights_bytes=0)) == 0


def test_transfers_and_rates_of_zero_never_divide_by_zero() -> None:
    assert transfer_us(10**9, 10**8, 30_000) == 10_030_000
    assert transfer_us(0, 0, 5) == 5
    assert transfer_us(7, 0, 0) == 7_000_000
    assert stage_us(_model("sd-1.5"), 0, 0, False) > 10**12


def test_activations_follow_tokens_and_batch() -> None:
    model = _model("flux.1-dev")
    shape = model.default_shape
    assert peak_bytes(model, shape) == model.activation_bytes
    assert peak_bytes(model, replace(shape, batch=4)) == 4 * model.activation_bytes
    assert peak_bytes(model, replace(shape, width=512, height=512)) == model.activation_bytes // 4
    assert peak_bytes(model, replace(shape, steps=1)) == peak_bytes(model, replace(shape, steps=99))


def test_results_are_a_few_megabytes() -> None:
    image = _model("flux.1-dev")
    assert 1_000_000 < output_bytes(image, image.default_shape) < 3_145_728
    film = _model("wan2.1-t2v-14b-720p")
    # 81 frames at 16 a second are five seconds; a decoder would have 3 MB for them at 5 Mbit/s.
    assert 1_000_000 < output_bytes(film, film.default_shape) < 6_000_000
    assert output_bytes(image, replace(image.default_shape, batch=3)) == 3 * output_bytes(image, image.default_shape)


class _Watched:
    """A model that notes which of its figures are read."""

    def __init__(self, model: ModelSpec) -> None:
        self.model, self.read = model, set[str]()

    def __getattr__(self, name: str) -> object:
        self.read.add(name)
        return getattr(self.model, name)


@pytest.mark.parametrize("name", ["flux.1-dev", "sd3-medium", "wan2.1-t2v-14b-720p", "sdxl-base-1.0", "sana-1.6b"])
def test_nothing_of_a_model_makes_it_slower_but_what_its_likeness_says(name: str) -> None:
    model = _model(name)
    watched = _Watched(model)
    for gpu in GPUS.values():
        for gang_size in (1, 2):
            shape = model.default_shape
            run = Run(model=cast(ModelSpec, watched), shape=shape, gpu=gpu, precision=Precision.FP8, gang_size=gang_size)
            predict_us(FITTED, run)
    told = likeness(cast(ModelSpec, watched))
    assert watched.read <= {*told._fields, "model_id"}
    tuned = replace(model, model_id=ModelId(f"{model.model_id}-tuned"), title="", weights_bytes=1, resident_bytes=2, weights_digest="")
    assert likeness(tuned) == likeness(model)


def test_shapes_that_would_fit_are_made_by_the_model_fit_and_are_the_largest_that_do() -> None:
    asked = 0
    for model in MODELS.values():
        large = replace(model.default_shape, batch=5)
        room = model.resident_bytes + peak_bytes(model, large) * 3 // 5
        for shape in fitting(model, large, room):
            asked += 1
            model.check_shape(shape)
            assert needed_bytes(model, shape) <= room < needed_bytes(model, large)
            if shape.batch < large.batch:
                assert needed_bytes(model, replace(shape, batch=shape.batch + 1)) > room
            elif shape.frames < large.frames:
                assert needed_bytes(model, replace(shape, frames=shape.frames + (model.frame_step or 1))) > room
            else:
                # Heights are rounded down, so the next width may have a height that is the same or one step larger.
                side = model.side_px or 16
                assert needed_bytes(model, replace(shape, width=shape.width + side, height=shape.height + side)) > room
        assert fitting(model, large, model.resident_bytes) == (), "its weights leave no room"
    assert asked > len(MODELS)
