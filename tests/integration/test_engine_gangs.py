"""Real gangs: two processes make one picture together, the same as one makes alone; none outlasts the others."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
pytest.importorskip("torch", reason="needs the worker extra")
pytest.importorskip("diffusers", reason="needs the worker extra")

import numpy as np
import torch
from PIL import Image

from agents.engine import encode
from agents.engine.errors import EngineError, GenerationStoppedError
from agents.engine.gang import GangPlace
from agents.engine.manifest import write_manifest
from agents.engine.pipeline import Engine, LoadedPipeline
from agents.engine.quiet import quiet_loading
from agents.engine.request import AdapterFile, GenerationRequest
from agents.engine.starter_adapters import build_starter_adapters
from agents.engine.starters import STARTERS, build_starters
from atoll.model.errors import FieldError
from atoll.model.ids import ModelId
from atoll.model.modelspec import Modality
from atoll.model.shape import Shape
from atoll.model.splits import check_gang
from tests.integration.test_engine_classes import CASES

pytestmark = pytest.mark.slow
WAIT_S: Final = 120.0
# Products of other sizes are rounded otherwise; two of 255 levels are not to be seen.
LEVELS_OFF_MAX: Final = 2


@dataclass(frozen=True)
class Made:
    """What a member answers: the lead's digests and pixels, nothing of the others; or how it ended."""

    digests: tuple[str, ...] = ()
    pixels: Any = None
    steps: tuple[int, ...] = ()
    forwards: tuple[tuple[int, ...], ...] = ()  # sizes of what the denoiser's first layers were given
    ended: str = ""


_loaded: dict[Path, LoadedPipeline] = {}


def work(
    folder: Path, request: GenerationRequest, place: GangPlace | None, trouble: str = "", adapters: tuple[AdapterFile, ...] = ()
) -> Made:
    """A member's process: make it, or get into trouble after the second step."""
    if folder not in _loaded:
        _loaded[folder] = Engine().load(folder)
    pipeline = _loaded[folder]
    pipeline.adapt([one for one in adapters if one.adapter_id not in pipeline.adapters])
    steps: list[int] = []

    def stepped(done: int, _of: int) -> None:
        steps.append(done)
        if done == 2 and trouble == "fail":
            raise RuntimeError("told to fail")
        if done == 2 and trouble == "hang":
            time.sleep(6)

    sizes: list[tuple[int, ...]] = []
    inner = _first_layer(pipeline._pipeline)
    hook = inner.register_forward_pre_hook(lambda _module, inputs: sizes.append(tuple(inputs[0].shape)))
    try:
        made = pipeline.generate(request, on_step=stepped, should_stop=lambda: trouble == "stop" and len(steps) >= 2, gang=place)
    except (EngineError, FieldError, GenerationStoppedError) as error:
        kind = error.kind if isinstance(error, EngineError) else ""
        return Made(steps=tuple(steps), ended=f"{type(error).__name__} {kind} {error}")
    finally:
        hook.remove()
    return Made(
        digests=tuple(encode.pixel_digest_of_frames(item.frames) for item in made.items),
        pixels=np.asarray([[np.asarray(frame) for frame in item.frames] for item in made.items]),
        steps=tuple(steps),
        forwards=tuple(sizes),
    )


def _first_layer(pipeline: Any) -> Any:
    if hasattr(pipeline, "unet"):
        return pipeline.unet.conv_in
    transformer = pipeline.transformer
    return (transformer.blocks if hasattr(transformer, "blocks") else transformer.transformer_blocks)[0].norm1


@dataclass
class Gang:
    pool: ProcessPoolExecutor
    folder: Path
    runs: int = 0

    def alone(self, model: Path, request: GenerationRequest, adapters: tuple[AdapterFile, ...] = ()) -> Made:
        return self.pool.submit(work, model, request, None, adapters=adapters).result(WAIT_S)

    def make(
        self,
        model: Path,
        request: GenerationRequest,
        *,
        troubles: dict[int, str] | None = None,
        timeout_s: float = 60.0,
        adapters: tuple[AdapterFile, ...] = (),
    ) -> list[Made]:
        self.runs += 1
        meeting = self.folder / f"meeting-{self.runs}"
        members: list[Future[Made]] = []
        for rank in range(2):
            place = GangPlace(meeting=meeting, rank=rank, size=2, timeout_s=timeout_s)
            members.append(self.pool.submit(work, model, request, place, (troubles or {}).get(rank, ""), adapters))
        return [member.result(WAIT_S) for member in members]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {str(starter.spec.model_id): starter.folder for starter in build_starters(tmp_path_factory.mktemp("gang-models"))}


@pytest.fixture(scope="module")
def gang(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gang]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield Gang(pool=pool, folder=tmp_path_factory.mktemp("gang"))


VIDEO = GenerationRequest(prompt="waves", shape=Shape(width=96, height=96, frames=9, steps=4, cfg_passes=2), seed=7)
IMAGE = GenerationRequest(prompt="a lighthouse", shape=Shape(width=64, height=64, steps=4, cfg_passes=2), seed=7)


def same_picture(one: Made, other: Made) -> bool:
    return one.pixels.shape == other.pixels.shape and int(np.abs(one.pixels.astype(int) - other.pixels.astype(int)).max()) <= LEVELS_OFF_MAX


@pytest.mark.parametrize(
    ("name", "request_", "axis"),
    [("tiny-video", VIDEO, 1), ("tiny-image", IMAGE, 0), ("tiny-image", replace(IMAGE, shape=replace(IMAGE.shape, batch=2)), 0)],
    ids=["sequence", "guidance", "batch"],
)
def test_a_gang_halves_the_work_and_makes_the_same_picture_each_time(
    gang: Gang, models: dict[str, Path], name: str, request_: GenerationRequest, axis: int
) -> None:
    alone = gang.alone(models[name], request_)
    lead, member = gang.make(models[name], request_)
    assert not lead.ended and not member.ended
    assert same_picture(lead, alone)
    assert len(lead.digests) == request_.shape.batch and not member.digests
    assert lead.steps == member.steps == alone.steps == (1, 2, 3, 4)
    assert len(lead.forwards) == len(alone.forwards)
    for whole, first, second in zip(alone.forwards, lead.forwards, member.forwards, strict=True):
        assert first == second
        assert first[axis] * 2 == whole[axis], "each member computes half"
    assert gang.make(models[name], request_)[0].digests == lead.digests
    assert gang.alone(models[name], request_).digests == alone.digests, "nothing of the gang is left in the pipeline"


def test_a_gang_with_an_adapter_and_an_image_to_begin_with(gang: Gang, models: dict[str, Path], tmp_path: Path) -> None:
    starters = tuple(starter for starter in build_starters(tmp_path) if starter.spec.model_id == "tiny-image")
    adapter = next(one for one in build_starter_adapters(tmp_path, starters) if one.spec.adapter_id == "tiny-ink")
    files = (AdapterFile(adapter_id=adapter.spec.adapter_id, path=adapter.path, digest=adapter.spec.weights_digest),)
    plain = gang.alone(models["tiny-image"], IMAGE)
    for wanted in (
        replace(IMAGE, adapters=((adapter.spec.adapter_id, 1.0),)),
        replace(IMAGE, image=Image.linear_gradient("L").convert("RGB"), strength=0.5),
    ):
        lead, member = gang.make(models["tiny-image"], wanted, adapters=files)
        assert (lead.ended, member.ended) == ("", "")
        alone = gang.alone(models["tiny-image"], wanted, files)
        assert same_picture(lead, alone) and not same_picture(lead, plain)


@pytest.mark.parametrize("asked", [0, 1])
def test_all_members_stop_at_the_step_at_which_one_is_told_to(gang: Gang, models: dict[str, Path], asked: int) -> None:
    for member in gang.make(models["tiny-video"], VIDEO, troubles={asked: "stop"}):
        assert member.ended.startswith("GenerationStoppedError") and member.steps == (1, 2)
    lead, _ = gang.make(models["tiny-video"], VIDEO)
    assert lead.digests


@pytest.mark.parametrize("struck", [0, 1])
def test_a_member_that_fails_ends_the_others_at_once(gang: Gang, models: dict[str, Path], struck: int) -> None:
    ends = gang.make(models["tiny-image"], IMAGE, troubles={struck: "fail"})
    assert "told to fail" in ends[struck].ended
    assert "runtime_lost" in ends[1 - struck].ended
    lead, _ = gang.make(models["tiny-image"], IMAGE)
    assert lead.digests


def test_a_member_that_hangs_does_not_hang_the_others_for_ever(gang: Gang, models: dict[str, Path]) -> None:
    lead, _ = gang.make(models["tiny-image"], IMAGE, troubles={1: "hang"}, timeout_s=1.0)
    assert "runtime_lost" in lead.ended


def test_what_cannot_be_shared_equally_is_refused_before_the_members_meet(models: dict[str, Path], tmp_path: Path) -> None:
    image, video = Engine().load(models["tiny-image"]), Engine().load(models["tiny-video"])

    def refusal(pipeline: LoadedPipeline, request: GenerationRequest, size: int) -> str:
        meeting = tmp_path / "nobody-comes"
        with pytest.raises(FieldError) as refused:
            pipeline.generate(request, gang=GangPlace(meeting=meeting, rank=0, size=size))
        assert refused.value.field == "gang_size" and not meeting.exists()
        return str(refused.value)

    assert "2 rows (2 guidance passes x batch 1)" in refusal(image, IMAGE, 4)
    assert "1 row (1 guidance pass x batch 1)" in refusal(image, replace(IMAGE, guidance=1.0), 2)
    assert "a gang shares the 4 attention heads" in refusal(video, VIDEO, 8)
    odd = replace(VIDEO, shape=replace(VIDEO.shape, width=48, height=48))
    assert "27 tokens of 48x48x9" in refusal(video, odd, 2)

    # Who submits is told the same before, from what is known of the models.
    for name, request, size in (("tiny-image", IMAGE, 4), ("tiny-image", replace(IMAGE, guidance=1.0), 2), ("tiny-video", odd, 2)):
        spec = next(one for one in STARTERS if one.model_id == name)
        with pytest.raises(FieldError) as told:
            check_gang(spec, request.shape, size, int((request.guidance or 0) * 1_000))
        assert str(told.value) == refusal({"tiny-image": image, "tiny-video": video}[name], request, size)


def test_a_member_that_is_told_to_stop_waits_for_nobody(models: dict[str, Path], tmp_path: Path) -> None:
    image = Engine().load(models["tiny-image"])
    asked = iter([False, False, True])
    with pytest.raises(GenerationStoppedError):
        image.generate(IMAGE, should_stop=lambda: next(asked), gang=GangPlace(meeting=tmp_path / "m", rank=0, size=2))


def save(name: str, folder: Path) -> Shape:
    build, shape, _, _ = CASES[name]
    with torch.random.fork_rng(devices=[]), quiet_loading():
        torch.manual_seed(0)
        build().save_pretrained(str(folder))
    write_manifest(folder, model_id=ModelId(name), modality=Modality.VIDEO if shape.frames > 1 else Modality.IMAGE)
    return shape


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' Heun under numpy 2
@pytest.mark.parametrize("name", ["flux", "sdxl"])
def test_other_classes_of_pipelines_in_a_gang(gang: Gang, name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    request = GenerationRequest(prompt="p", shape=save(name, folder), seed=1)
    lead, member = gang.make(folder, request)
    assert (lead.ended, member.ended) == ("", "")
    assert same_picture(lead, gang.alone(folder, request))
    assert gang.make(folder, request)[0].digests == lead.digests


def test_a_class_that_cannot_be_split_is_refused_by_name(tmp_path: Path) -> None:
    shape = save("ltx", tmp_path / "ltx")
    place = GangPlace(meeting=tmp_path / "m", rank=0, size=2)
    with pytest.raises(FieldError, match="LTXVideoTransformer3DModel cannot be split"):
        Engine().load(tmp_path / "ltx").generate(GenerationRequest(prompt="p", shape=shape), gang=place)
