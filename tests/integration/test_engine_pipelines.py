"""The engine on real diffusers pipelines: the starters, built once for this module."""

from __future__ import annotations

import io
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
pytest.importorskip("torch", reason="needs the worker extra")
pytest.importorskip("diffusers", reason="needs the worker extra")

from PIL import Image

from agents.engine import encode
from agents.engine.errors import GenerationStoppedError
from agents.engine.manifest import verify_folder
from agents.engine.pipeline import Engine, LoadedPipeline
from agents.engine.request import GenerationRequest
from agents.engine.starters import TINY_IMAGE, TINY_VIDEO, StarterModel, build_starters
from atoll.model.errors import FieldError, StateError
from atoll.model.ids import ModelId, TenantId
from atoll.model.job import JobSpec
from atoll.model.shape import Precision, Shape

IMAGE = GenerationRequest(prompt="a lighthouse", shape=Shape(width=64, height=64, steps=3), seed=7)
VIDEO = GenerationRequest(prompt="a lighthouse", shape=Shape(width=64, height=64, frames=9, steps=2), seed=7)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


@pytest.fixture(scope="module")
def starters(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, StarterModel]:
    built = build_starters(tmp_path_factory.mktemp("starters"))
    return {str(starter.spec.model_id): starter for starter in built}


@pytest.fixture(scope="module")
def image_model(engine: Engine, starters: dict[str, StarterModel]) -> LoadedPipeline:
    return engine.load(starters["tiny-image"].folder)


@pytest.fixture(scope="module")
def video_model(engine: Engine, starters: dict[str, StarterModel]) -> LoadedPipeline:
    return engine.load(starters["tiny-video"].folder)


def digest_of(model: LoadedPipeline, request: GenerationRequest) -> str:
    return encode.pixel_digest(model.generate(request).items[0].frames)


def test_every_build_of_a_starter_gives_the_same_bytes(starters: dict[str, StarterModel], tmp_path: Path) -> None:
    again = build_starters(tmp_path)
    assert [starter.manifest.digest for starter in again] == [s.manifest.digest for s in starters.values()]
    assert not any(starter.reused for starter in again)


def test_a_built_starter_is_used_again_and_a_damaged_one_is_built_again(starters: dict[str, StarterModel], tmp_path: Path) -> None:
    original = starters["tiny-image"]
    shutil.copytree(original.folder, tmp_path / "tiny-image")
    lines: list[str] = []
    (reused,) = build_starters(tmp_path, only=("tiny-image",), on_progress=lines.append)
    assert reused.reused
    assert lines == ["tiny-image: already built"]
    weights = tmp_path / "tiny-image" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    (rebuilt,) = build_starters(tmp_path, only=("tiny-image",))
    assert not rebuilt.reused
    assert rebuilt.manifest.digest == original.manifest.digest
    assert verify_folder(rebuilt.folder) == original.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-image"]


def test_starter_figures_are_those_of_the_pipelines(
    starters: dict[str, StarterModel], image_model: LoadedPipeline, video_model: LoadedPipeline
) -> None:
    for model in (image_model, video_model):
        spec = starters[str(model.manifest.model_id)].spec
        assert spec.weights_digest == model.manifest.digest
        assert spec.weights_bytes == model.manifest.total_bytes < 12_000_000
        assert spec.resident_bytes == model.report.resident_bytes
        assert spec.pipeline_class == model.manifest.pipeline_class


def test_unknown_starter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FieldError, match="one of tiny-image, tiny-video"):
        build_starters(tmp_path, only=("tiny-audio",))


def test_load_reports_bytes_and_times(starters: dict[str, StarterModel], image_model: LoadedPipeline) -> None:
    report = image_model.report
    assert report.read_bytes == starters["tiny-image"].manifest.total_bytes
    assert 0 <= report.disk_bytes <= report.read_bytes
    assert report.read_us > 0
    assert report.init_us > 0
    assert (report.moved_bytes, report.move_us, report.h2d_bytes_per_s) == (0, 0, None)


@pytest.mark.parametrize("name", ["image", "video"])
def test_same_seed_same_pixels_and_each_input_matters(name: str, image_model: LoadedPipeline, video_model: LoadedPipeline) -> None:
    model, request = (image_model, IMAGE) if name == "image" else (video_model, VIDEO)
    first = digest_of(model, request)
    assert digest_of(model, request) == first
    changes = (
        replace(request, seed=8),
        replace(request, prompt="a red fox"),
        replace(request, guidance=1.5),
        replace(request, negative_prompt="fog"),
        replace(request, shape=replace(request.shape, steps=4)),
    )
    assert len({first, *(digest_of(model, changed) for changed in changes)}) == 1 + len(changes)


def test_results_do_not_depend_on_the_process_that_made_them(
    engine: Engine, starters: dict[str, StarterModel], image_model: LoadedPipeline
) -> None:
    other = engine.load(starters["tiny-image"].folder)
    assert digest_of(other, IMAGE) == digest_of(image_model, IMAGE)
    other.unload()


def test_prompts_of_any_script_are_told_apart(image_model: LoadedPipeline) -> None:
    prompts = ("灯台", "маяк", "phare 🗼", "")
    assert len({digest_of(image_model, replace(IMAGE, prompt=prompt)) for prompt in prompts}) == len(prompts)


def test_an_image_is_neither_flat_nor_static(image_model: LoadedPipeline) -> None:
    shape = Shape(width=128, height=128, steps=8)
    (frame,) = image_model.generate(replace(IMAGE, shape=shape)).items[0].frames
    spreads = [high - low for low, high in frame.getextrema()]
    assert max(spreads) > 60
    # Static would lose its contrast when averaged to 16 x 16; a shape keeps most of it.
    small = [high - low for low, high in frame.resize((16, 16), Image.Resampling.BOX).getextrema()]
    assert max(small) > 0.6 * max(spreads)


def test_items_of_a_batch_have_seeds_of_their_own(image_model: LoadedPipeline) -> None:
    batch = image_model.generate(replace(IMAGE, shape=replace(IMAGE.shape, batch=3)))
    assert [item.seed for item in batch.items] == [7, 8, 9]
    assert len({encode.pixel_digest(item.frames) for item in batch.items}) == 3


def test_video_has_the_frames_that_were_asked_for(video_model: LoadedPipeline) -> None:
    (item,) = video_model.generate(VIDEO).items
    assert len(item.frames) == 9
    assert {frame.size for frame in item.frames} == {(64, 64)}
    assert len({frame.tobytes() for frame in item.frames}) == 9


def test_progress_is_told_step_by_step(image_model: LoadedPipeline) -> None:
    heard: list[tuple[int, int]] = []
    done = image_model.generate(IMAGE, on_step=lambda step, steps: heard.append((step, steps)))
    assert heard == [(1, 3), (2, 3), (3, 3)]
    assert done.steps_done == 3
    assert done.guidance == 7.5
    assert done.denoise_us > 0
    assert done.decode_us > 0
    assert done.step_us > 0


@pytest.mark.parametrize("name", ["image", "video"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_stopping_half_way_leaves_the_pipeline_usable(
    name: str, after: int, image_model: LoadedPipeline, video_model: LoadedPipeline
) -> None:
    model, request = (image_model, IMAGE) if name == "image" else (video_model, VIDEO)
    before = digest_of(model, request)
    steps: list[int] = []
    with pytest.raises(GenerationStoppedError) as stopped:
        model.generate(request, on_step=lambda step, _: steps.append(step), should_stop=lambda: len(steps) >= after)
    assert stopped.value.steps_done == after == len(steps)
    assert digest_of(model, request) == before


def test_an_error_of_the_listener_is_the_callers_and_leaves_the_pipeline_usable(image_model: LoadedPipeline) -> None:
    before = digest_of(image_model, IMAGE)

    def broken(_step: int, _steps: int) -> None:
        raise StateError("the listener is gone")

    with pytest.raises(StateError, match="the listener is gone"):
        image_model.generate(IMAGE, on_step=broken)
    assert digest_of(image_model, IMAGE) == before


def test_a_pipeline_without_step_callback_is_observed_through_its_scheduler(engine: Engine, starters: dict[str, StarterModel]) -> None:
    import diffusers

    class NoCallback(diffusers.StableDiffusionPipeline):  # type: ignore[misc]
        def __call__(  # type: ignore[no-untyped-def]
            self, prompt, height, width, num_inference_steps, output_type, return_dict, generator=None
        ):
            return super().__call__(prompt, height, width, num_inference_steps, output_type=output_type, generator=generator)

    model = engine.load(starters["tiny-image"].folder)
    expected = digest_of(model, IMAGE)
    model._pipeline.__class__ = NoCallback
    steps: list[int] = []
    made = model.generate(IMAGE, on_step=lambda step, _: steps.append(step))
    assert steps == [1, 2, 3]
    assert made.guidance is None
    assert encode.pixel_digest(made.items[0].frames) == expected
    with pytest.raises(GenerationStoppedError):
        model.generate(IMAGE, should_stop=lambda: len(steps) >= 3)
    assert digest_of(model, IMAGE) == expected
    with pytest.raises(FieldError, match="takes no negative prompt"):
        model.generate(replace(IMAGE, negative_prompt="fog"))
    with pytest.raises(FieldError, match="takes no guidance"):
        model.generate(replace(IMAGE, guidance=2.0))
    with pytest.raises(FieldError, match="one result per call"):
        model.generate(replace(IMAGE, shape=replace(IMAGE.shape, batch=2)))
    model.unload()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 100}, "shape.width is 100: expected a multiple of 8, such as 96 or 104"),
        ({"height": 60}, "shape.height is 60: expected a multiple of 8"),
        ({"frames": 9}, "shape.frames is 9: expected 1: this model makes images"),
        ({"steps": 0}, "shape.steps is 0"),
        ({"steps": 1_000}, "shape.steps is 1000: expected at most 999: this pipeline's schedule has no more"),
        ({"width": -64}, "shape.width is -64"),
        ({"width": 10**9}, "shape.width is 1000000000"),
        ({"batch": 1000}, "shape.batch is 1000"),
    ],
)
def test_shapes_an_image_model_cannot_make(change: dict[str, int], message: str, image_model: LoadedPipeline) -> None:
    with pytest.raises(FieldError) as refused:
        image_model.generate(replace(IMAGE, shape=replace(IMAGE.shape, **change)))
    assert message in str(refused.value)


def test_what_is_known_of_the_starters_is_what_their_pipelines_make(image_model: LoadedPipeline, video_model: LoadedPipeline) -> None:
    for spec, model in ((TINY_IMAGE, image_model), (TINY_VIDEO, video_model)):
        rule = model.shape_rule
        assert (spec.side_px, spec.frame_step or 1) == (rule.side_px, rule.frame_step)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 72}, "shape.width is 72: expected a multiple of 16, such as 64 or 80"),
        ({"frames": 10}, "shape.frames is 10: expected 1 + a multiple of 4, such as 9 or 13"),
    ],
)
def test_shapes_a_video_model_cannot_make(change: dict[str, int], message: str, video_model: LoadedPipeline) -> None:
    with pytest.raises(FieldError) as refused:
        video_model.generate(replace(VIDEO, shape=replace(VIDEO.shape, **change)))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt": "x" * 1_000_000}, "prompt"),
        ({"prompt": "a\x00b"}, "prompt"),
        ({"negative_prompt": "\ud800"}, "negative_prompt"),
        ({"guidance": float("nan")}, "guidance"),
        ({"guidance": float("inf")}, "guidance"),
        ({"guidance": -1.0}, "guidance"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_requests_no_pipeline_can_make(change: dict[str, object], field: str, image_model: LoadedPipeline) -> None:
    with pytest.raises(FieldError) as refused:
        image_model.generate(replace(IMAGE, **change))  # type: ignore[arg-type]
    assert refused.value.field == field


def test_devices_and_precisions_that_are_not_there(engine: Engine, starters: dict[str, StarterModel]) -> None:
    folder = starters["tiny-image"].folder
    for device in ("cuda:99", "tpu", "cpu; rm"):
        with pytest.raises(FieldError, match="device"):
            engine.load(folder, device=device)
    with pytest.raises(FieldError, match="one of fp32, fp16, bf16"):
        engine.load(folder, precision=Precision.FP8)


def test_bf16_runs_and_takes_half_the_memory(engine: Engine, starters: dict[str, StarterModel], image_model: LoadedPipeline) -> None:
    model = engine.load(starters["tiny-image"].folder, precision=Precision.BF16)
    assert model.report.resident_bytes < 0.6 * image_model.report.resident_bytes
    assert digest_of(model, IMAGE) == digest_of(model, IMAGE)
    model.unload()


def test_unloaded_is_unusable_and_unloading_twice_is_nothing(engine: Engine, starters: dict[str, StarterModel]) -> None:
    model = engine.load(starters["tiny-image"].folder)
    model.unload()
    model.unload()
    with pytest.raises(StateError, match="was unloaded"):
        model.generate(IMAGE)


def test_one_call_at_a_time(image_model: LoadedPipeline) -> None:
    refusals: list[str] = []

    def reenter(_step: int, _steps: int) -> None:
        for action in (lambda: image_model.generate(IMAGE), image_model.unload):
            try:
                action()
            except StateError as error:
                refusals.append(str(error))

    image_model.generate(replace(IMAGE, shape=replace(IMAGE.shape, steps=1)), on_step=reenter)
    assert len(refusals) == 2
    assert "one call at a time" in refusals[0]


def test_a_job_becomes_a_request() -> None:
    spec = JobSpec(tenant=TenantId("t"), model_id=ModelId("tiny-image"), prompt="p", seed=3, shape=IMAGE.shape, guidance_milli=4500)
    assert GenerationRequest.of_job(spec) == GenerationRequest(prompt="p", seed=3, shape=IMAGE.shape, guidance=4.5)
    assert GenerationRequest.of_job(replace(spec, guidance_milli=0)).guidance is None


@pytest.mark.parametrize("name", ["image", "video"])
def test_a_stored_result_can_be_made_again_with_plain_diffusers(
    name: str,
    image_model: LoadedPipeline,
    video_model: LoadedPipeline,
    starters: dict[str, StarterModel],
    tmp_path: Path,
) -> None:
    import torch
    from diffusers import DiffusionPipeline

    model, request = (image_model, IMAGE) if name == "image" else (video_model, VIDEO)
    request = replace(request, prompt="灯台 ☂ “lighthouse” é\n", guidance=3.0, negative_prompt="fog")
    (encoded,) = encode.encode_generation(
        model.generate(request),
        request,
        job="job-1",
        attempt=2,
        model=model.manifest.model_id,
        model_digest=model.manifest.digest,
        precision=model.precision,
        video=name == "video",
    )
    path = tmp_path / encoded.name
    path.write_bytes(encoded.data)
    assert encode.pixel_digest(path) == encoded.pixel_digest
    facts = encode.PictureFacts.from_text(encode.read_metadata(path))
    assert (facts.prompt, facts.job, facts.attempt) == (request.prompt, "job-1", 2)
    assert facts.model_digest == model.manifest.digest

    plain = DiffusionPipeline.from_pretrained(str(starters[facts.model].folder), local_files_only=True)
    plain.set_progress_bar_config(disable=True)
    more = {"num_frames": facts.frames} if name == "video" else {}
    output = plain(
        facts.prompt,
        negative_prompt=facts.negative_prompt,
        width=facts.width,
        height=facts.height,
        num_inference_steps=facts.steps,
        guidance_scale=facts.guidance,
        generator=torch.Generator("cpu").manual_seed(facts.seed),
        output_type="pil",
        **more,
    )
    if name == "video":
        assert encode.pixel_digest_of_mp4(output.frames[0], fps=facts.fps) == encoded.pixel_digest
    else:
        assert encode.pixel_digest(output.images) == encoded.pixel_digest
        with Image.open(io.BytesIO(encoded.data)) as image:
            assert image.size == (facts.width, facts.height)
