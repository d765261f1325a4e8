"""The packaged tables are read whole, keep their marks, and a broken table says in which line."""

from __future__ import annotations

import pytest

from atoll import data
from atoll.catalog.gpus import parse_gpus
from atoll.catalog.models import parse_models_csv, slug
from atoll.catalog.problems import SourceErrors
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
