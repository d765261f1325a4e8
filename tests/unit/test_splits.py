"""What a gang can share: the rule that submit, quote and engine ask, against the pipelines of diffusers and by hand."""

from __future__ import annotations

import inspect
import re
import warnings
from dataclasses import replace

import pytest

from agents.engine.gang import BY_ROWS, BY_SEQUENCE
from agents.engine.starters import STARTERS
from atoll.model.errors import FieldError
from atoll.model.ids import ModelId
from atoll.model.modelspec import IMAGE_TO_IMAGE, DenoiserKind, ModelSpec
from atoll.model.shape import Shape
from atoll.model.splits import HEAD_SIZE, SPLITS, Split, check_gang
from atoll.packaged import load_packaged
from orchestrator.core.outputs import Refusal, RefusalCode
from tests.unit.fleet_of_machines import Fleet, model, pool, site, spec

CATALOGUE = {one.model_id: one for one in load_packaged().models}


def refused(one: ModelSpec, size: int, shape: Shape | None = None, guidance_milli: int = 0) -> str:
    """What the rule says of a gang; "" if it can share."""
    try:
        check_gang(one, shape or one.default_shape, size, guidance_milli)
    except FieldError as error:
        return str(error).removeprefix(f"gang_size is {size}: expected ")
    return ""


def known(name: str) -> ModelSpec:
    return CATALOGUE[ModelId(name)]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("sd-1.5", {1, 2}),
        ("sdxl-turbo", {1}),
        ("stable-video-diffusion-xt", {1, 2}),
        ("wan2.1-t2v-1.3b-480p", {1, 2, 4}),  # 12 heads
        ("wan2.1-t2v-14b-480p", {1, 2, 4, 8}),
        ("flux.1-dev", {1, 2, 4, 8}),
        ("hunyuanvideo-t2v-720p", {1, 2, 4, 8}),  # other engines split it, so a rehearsal may
    ],
)
def test_models_of_the_catalogue_are_shared_by_gangs_of_these_sizes(name: str, sizes: set[int]) -> None:
    assert {size for size in (1, 2, 4, 8) if not refused(known(name), size)} == sizes


def test_rows_are_of_passes_and_results_and_the_refusal_says_what_would_do() -> None:
    base = known("sdxl-base-1.0")
    told = refused(base, 4)
    assert told == "1 or 2: a gang shares the 2 rows (2 guidance passes x batch 1) of a UNet; a batch of 2 would make 4"
    assert not refused(base, 4, replace(base.default_shape, batch=2)), "what it says would do does"
    assert refused(base, 2, guidance_milli=1_000).startswith("1: a gang shares the 1 row (1 guidance pass x batch 1)")
    told = refused(known("sdxl-turbo"), 2)
    assert told == (
        "1: a gang shares the 1 row (1 guidance pass x batch 1) of a UNet; a batch of 2 would make 2, and so would a guidance above 1"
    )
    assert not refused(known("sdxl-turbo"), 2, guidance_milli=5_000), "who asks for guidance has two passes"
    assert "guidance above" not in refused(known("sdxl-turbo"), 4), "two rows are too few for four"
    distilled = replace(base, pipeline_class="LatentConsistencyModelPipeline")
    told = refused(distilled, 2, guidance_milli=8_000)
    assert told and "guidance above" not in told, "its guidance takes no pass of its own"


def test_tokens_are_shared_too_where_the_grid_is_known() -> None:
    flux = known("flux.1-schnell")
    odd = Shape(width=1008, height=1008, steps=4)  # 63 x 63 tokens
    assert refused(flux, 2, odd) == "1: a gang shares the 3969 tokens of 1008x1008 equally"
    assert not refused(replace(flux, side_px=0), 2, odd), "nothing is refused on a guess"


def test_with_weights_at_hand_only_what_the_engine_splits_can_be_a_gang() -> None:
    qwen = known("qwen-image")
    assert not refused(qwen, 2), "a rehearsal of other engines"
    assert refused(replace(qwen, weights_digest="sha256:" + "0" * 64), 2).startswith("1: QwenImagePipeline of qwen-image works whole")
    assert not refused(replace(qwen, weights_digest="sha256:" + "0" * 64, pipeline_class="NewPipeline"), 2), "not known: not refused"


def test_submit_and_quote_refuse_at_once_what_no_gang_can_share() -> None:
    unet = replace(model("m"), pipeline_class="StableDiffusionPipeline")
    unet = replace(unet, physics=replace(unet.physics, kind=DenoiserKind.UNET))
    fleet = Fleet(site("a", pool("p", gpus=8)), models=(unet,))
    shape = Shape(width=1024, height=1024, steps=4, cfg_passes=2)
    for size, right in ((2, True), (4, False), (8, False)):
        one = spec("m", shape=shape, gang_size=size)
        quoted = fleet.machine.quote_job(one, fleet.now_us)
        before = len(fleet.jobs)
        fleet.submit(one)
        if right:
            assert not isinstance(quoted, Refusal) and len(fleet.jobs) == before + 1
        else:
            assert isinstance(quoted, Refusal) and quoted.code is RefusalCode.INVALID and quoted.field == "gang_size"
            assert quoted.message.startswith(f"gang_size is {size}: expected 1 or 2: ") and len(fleet.jobs) == before


def test_classes_are_known_by_the_denoisers_that_diffusers_gives_them() -> None:
    diffusers = pytest.importorskip("diffusers", reason="needs the worker extra")
    named = {one.pipeline_class for one in (*CATALOGUE.values(), *STARTERS) if one.pipeline_class}
    assert (named | set(IMAGE_TO_IMAGE)) == set(SPLITS), "each class that is named anywhere, and no other"
    for name, split in SPLITS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some of its modules use what torch is about to rename
            cls = getattr(diffusers, name)
        takes = inspect.signature(cls.__init__).parameters
        annotations = " ".join(str(takes[part].annotation) for part in ("transformer", "transformer_2", "unet") if part in takes)
        denoisers = set(re.findall(r"\w+(?:Transformer\w*DModel|DiT2DModel)|\w*UNet(?:2D|Motion|SpatioTemporal)?\w*", annotations))
        assert denoisers, (name, annotations)
        expected = Split.ROWS if denoisers <= BY_ROWS else Split.SEQUENCE if denoisers <= BY_SEQUENCE else Split.NOTHING
        assert split is expected, (name, denoisers)
    for denoiser in BY_SEQUENCE:
        own = inspect.signature(getattr(diffusers, denoiser).__init__).parameters["attention_head_dim"]
        assert own.default == HEAD_SIZE
