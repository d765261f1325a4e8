"""The packaged tables are read whole, keep their marks, and a broken table says in which line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll import data
from atoll.catalog.gpus import parse_gpus
from atoll.catalog.models import parse_models_csv, slug
from atoll.catalog.problems import SourceErrors
from atoll.model.errors import FieldError
from atoll.model.gpu import CPU
from atoll.model.ids import GpuTypeId, ModelId
from atoll.model.modelspec import DenoiserKind, Modality
from atoll.model.shape import Shape
from atoll.packaged import load_packaged

PACKAGED = load_packaged()
MODELS = {model.model_id: model for model in PACKAGED.models}


def test_gpu_figures_are_in_base_units() -> None:
    h100 = PACKAGED.gpus[GpuTypeId("H100-SXM")]
    assert h100.memory_bytes == 796 * 2**30 // 10
    assert h100.memory_bytes_per_s == 3_350 * 10**9
    assert (h100.fp16_flops, h100.fp8_flops, h100.fp4_flops) == (989 * 10**12, 1_979 * 10**12, 0)
    assert h100.usd_micros_per_hour == 2_400_000
    assert not PACKAGED.gpus[GpuTypeId("T4")].has_bf16


def test_every_gpu_type_can_be_computed_with() -> None:
    assert len(PACKAGED.gpus) == 34
    for gpu in PACKAGED.gpus.values():
        assert gpu.memory_bytes > 0 and gpu.fp32_flops > 0 and gpu.h2d_bytes_per_s > 0 and gpu.source, gpu.gpu_type


def test_estimates_keep_their_mark() -> None:
    assert "usd_h_hyperscaler_od" in PACKAGED.gpus[GpuTypeId("H200")].estimated_fields
    assert "fp32_dense_tflops" in PACKAGED.gpus[CPU].estimated_fields
    assert MODELS[ModelId("hidream-i1-full")].physics.estimated
    assert not MODELS[ModelId("flux.1-dev")].physics.estimated


def test_models_are_for_twins_only() -> None:
    assert not any(model.servable for model in PACKAGED.models)


def test_models_have_possible_shapes_and_figures() -> None:
    assert len(MODELS) == len(PACKAGED.models) == 78
    for model in PACKAGED.models:
        model.default_shape.check()
        assert model.activation_bytes > 0 and model.resident_bytes >= model.weights_bytes, model.model_id


def test_a_model_as_the_table_has_it() -> None:
    flux = MODELS[ModelId("flux.1-dev")]
    assert flux.title == "FLUX.1 [dev]"
    assert flux.modality is Modality.IMAGE
    assert flux.default_shape == Shape(width=1024, height=1024, steps=28)
    assert flux.weights_bytes == 33_740_000_000
    assert flux.physics.kind is DenoiserKind.TRANSFORMER
    assert flux.physics.tokenwise_params == 6_457_000_000
    assert MODELS[ModelId("sana-1.6b")].physics.kind is DenoiserKind.LINEAR
    assert MODELS[ModelId("sdxl-base-1.0")].physics.kind is DenoiserKind.UNET


def test_rows_without_a_denoiser_are_left_out() -> None:
    assert not {ModelId(name) for name in ("whisper-large-v3", "trellis-image-large", "seedvr2-3b", "stable-cascade")} & MODELS.keys()
    assert not any(name.startswith("lora") for name in MODELS)


@pytest.mark.parametrize(
    ("name", "side_px", "frame_step"),
    [
        ("sdxl-base-1.0", 8, 0),  # a UNet takes latents as they are
        ("flux.1-dev", 16, 0),  # two latents a token
        ("flux.1-kontext-dev", 16, 0),  # the tokens of a second picture beside them
        ("hunyuanimage-2.1", 32, 0),  # an autoencoder of 32
        ("sana-1.6b", 32, 0),
        ("wan2.1-t2v-14b-720p", 16, 4),
        ("wan2.2-ti2v-5b-720p", 32, 4),  # an autoencoder of 16, two latents a token
        ("sana-video-2b-480p", 32, 4),  # its pipeline is coarser than its tokens
        ("ltx-video-13b-dev", 32, 8),
        ("mochi-1-preview", 16, 6),
        ("cogvideox1.5-5b", 16, 4),
        ("allegro", 0, 0),  # its 88 frames are none of 1 + a multiple of 4
    ],
)
def test_which_sizes_a_model_makes_follows_from_its_figures(name: str, side_px: int, frame_step: int) -> None:
    found = MODELS[ModelId(name)]
    assert (found.side_px, found.frame_step) == (side_px, frame_step)


def test_every_model_makes_the_size_that_it_is_known_by() -> None:
    for found in MODELS.values():
        found.check_shape(found.default_shape)
        assert found.side_px or found.model_id == "allegro"


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("flux.1-dev", {"width": 1000}, "shape.width is 1000: expected a multiple of 16, such as 992 or 1008"),
        ("flux.1-dev", {"height": 10}, "shape.height is 10: expected a multiple of 16, such as 16"),
        ("flux.1-dev", {"width": 1001, "height": 999}, "shape is '1001x999': expected sides that are multiples of 16, such as 1008x992"),
        ("flux.1-dev", {"frames": 9}, "shape.frames is 9: expected 1: flux.1-dev makes images"),
        ("wan2.1-t2v-14b-720p", {"frames": 80}, "shape.frames is 80: expected 1 + a multiple of 4, such as 77 or 81"),
        ("wan2.2-ti2v-5b-720p", {"height": 720}, "shape.height is 720: expected a multiple of 32, such as 704 or 736"),
    ],
)
def test_another_size_is_refused_with_the_nearest_that_are_made(name: str, shape: dict[str, int], said: str) -> None:
    found = MODELS[ModelId(name)]
    with pytest.raises(FieldError) as refused:
        found.check_shape(replace(found.default_shape, **shape))
    assert str(refused.value) == said


def test_two_minutes_of_4k_can_be_meant_and_more_pixels_than_anybody_means_cannot() -> None:
    found = MODELS[ModelId("wan2.1-t2v-14b-720p")]
    found.check_shape(replace(found.default_shape, width=3_840, height=2_160, frames=7_197).check())
    with pytest.raises(FieldError) as refused:
        found.check_shape(replace(found.default_shape, width=8_192, height=8_192, frames=7_197).check())
    expected = "expected at most 68719476736 pixels in all frames of all results"
    assert str(refused.value) == f"shape is '1 of 8192x8192 with 7197 frames': {expected}"


@pytest.mark.parametrize(
    ("title", "name"),
    [("FLUX.1 [dev]", "flux.1-dev"), ("SD 2.1 (768)", "sd-2.1-768"), ("LTX-Video 2B 0.9.x", "ltx-video-2b-0.9.x")],
)
def test_names_of_models(title: str, name: str) -> None:
    assert slug(title) == name


def _replaced(text: str, line: int, old: str, new: str) -> str:
    lines = text.splitlines(keepends=True)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    return "".join(lines)


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("B200", "B/200", "gpu"),
        ("8000", "nan", "mem_bw_gbs"),
        ("8000", "-1", "mem_bw_gbs"),
        ("8000", "", "mem_bw_gbs"),
        ("2250", "1e99", "fp16_dense_tflops"),
        (",1,4500", ",yes,4500", "bf16_supported"),
        ("NVIDIA,", "NVIDIA,,", "row"),
    ],
)
def test_a_wrong_cell_is_named_with_its_line(old: str, new: str, field: str) -> None:
    with pytest.raises(SourceErrors) as caught:
        parse_gpus(_replaced(data.gpus_csv(), 2, old, new), "mine.csv")
    (error,) = caught.value.errors
    assert (error.file, error.line, error.field) == ("mine.csv", 2, field)


def test_the_same_gpu_twice_is_refused() -> None:
    text = data.gpus_csv()
    with pytest.raises(SourceErrors, match="each GPU type once"):
        parse_gpus(text + text.splitlines()[1] + "\n", "mine.csv")


def test_a_missing_column_is_named() -> None:
    with pytest.raises(SourceErrors, match=r"header is .*: expected also the column mem_bw_gbs"):
        parse_gpus(_replaced(data.gpus_csv(), 1, "mem_bw_gbs", "bandwidth"), "mine.csv")


@pytest.mark.parametrize("text", ["", "\n\n", "\0", 'a,"b\n', "x" * (5 * 1024 * 1024)])
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(SourceErrors):
        parse_gpus(text, "mine.csv")
    with pytest.raises(SourceErrors):
        parse_models_csv(text, "mine.csv")
