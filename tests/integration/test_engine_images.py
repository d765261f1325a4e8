"""Image-to-image on a real pipeline, and what is refused as an image."""

from __future__ import annotations

import inspect
import io
import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
pytest.importorskip("torch", reason="needs the worker extra")
pytest.importorskip("diffusers", reason="needs the worker extra")

from PIL import Image

from agents.engine import encode
from agents.engine.errors import GenerationStoppedError
from agents.engine.images import place_image, read_image
from agents.engine.pipeline import Engine, LoadedPipeline
from agents.engine.request import AdapterFile, GenerationRequest
from agents.engine.starter_adapters import build_starter_adapters
from agents.engine.starters import StarterModel, build_starters
from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.modelspec import IMAGE_TO_IMAGE
from atoll.model.shape import Shape

PLAIN = GenerationRequest(prompt="a lighthouse", shape=Shape(width=64, height=64, steps=10, cfg_passes=2), seed=7)


def _gradient(width: int = 80, height: int = 64) -> Image.Image:
    image = Image.new("RGB", (width, height))
    image.putdata([(x * 3 % 256, y * 4 % 256, 128) for y in range(height) for x in range(width)])
    return image


def _encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format=form, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("starters")


@pytest.fixture(scope="module")
def models(root: Path) -> tuple[StarterModel, ...]:
    return build_starters(root)


@pytest.fixture(scope="module")
def model(engine: Engine, models: tuple[StarterModel, ...]) -> LoadedPipeline:
    return engine.load(models[0].folder)


def _pixels(model: LoadedPipeline, request: GenerationRequest) -> str:
    return encode.pixel_digest(model.generate(request).items[0].frames)


def test_an_image_and_its_strength_shape_what_is_made(model: LoadedPipeline) -> None:
    plain, size = _pixels(model, PLAIN), model.resident_bytes
    image = read_image(_encoded(_gradient()))
    begun = replace(PLAIN, image=image, strength=0.5)
    half = _pixels(model, begun)
    assert _pixels(model, begun) == half
    other = replace(begun, image=read_image(_encoded(_gradient().transpose(Image.Transpose.ROTATE_180))))
    assert len({plain, half, _pixels(model, replace(begun, strength=0.9)), _pixels(model, other)}) == 4
    assert _pixels(model, PLAIN) == plain
    assert model.resident_bytes == size  # the two forms share their components


def test_progress_goes_from_none_to_all_steps_whatever_the_strength(model: LoadedPipeline) -> None:
    image = _gradient()
    for strength, taken in ((0.3, 3), (0.5, 5), (1.0, 10)):
        told: list[int] = []

        def hear(done: int, steps: int, told: list[int] = told) -> None:
            assert steps == 10
            told.append(done)

        generation = model.generate(replace(PLAIN, image=image, strength=strength), on_step=hear)
        assert told == [10 * (step + 1) // taken for step in range(taken)]
        assert generation.steps_done == 10


def test_it_can_be_stopped_and_goes_on_after_that(model: LoadedPipeline) -> None:
    begun = replace(PLAIN, image=_gradient(), strength=0.5)
    expected = _pixels(model, begun)
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 2

    with pytest.raises(GenerationStoppedError):
        model.generate(begun, should_stop=stop)
    assert _pixels(model, begun) == expected


def test_adapters_work_on_an_image_too(model: LoadedPipeline, models: tuple[StarterModel, ...], root: Path) -> None:
    begun = replace(PLAIN, image=_gradient(), strength=0.5)
    expected = _pixels(model, begun)
    adapter = build_starter_adapters(root, models)[0]
    model.adapt([AdapterFile(adapter_id=adapter.spec.adapter_id, path=adapter.path, digest=adapter.spec.weights_digest)])
    assert _pixels(model, replace(begun, adapters=((adapter.spec.adapter_id, 1.0),))) != expected
    assert _pixels(model, begun) == expected
    model.adapt([], unload=[adapter.spec.adapter_id])


def test_a_pipeline_without_such_a_form_says_so(engine: Engine, models: tuple[StarterModel, ...]) -> None:
    film = engine.load(models[1].folder)
    request = GenerationRequest(prompt="waves", shape=Shape(width=64, height=64, frames=5, steps=2), image=_gradient(), strength=0.5)
    with pytest.raises(FieldError, match="no form that begins with one"):
        film.generate(request)


@pytest.mark.parametrize(("strength", "image"), [(0.0, True), (1.1, True), (float("nan"), True), (0.5, False), (0.05, True)])
def test_a_strength_that_cannot_be_is_refused(model: LoadedPipeline, strength: float, image: bool) -> None:
    with pytest.raises(FieldError, match="strength"):
        model.generate(replace(PLAIN, image=_gradient() if image else None, strength=strength))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # of a pipeline that is imported with all the others
def test_the_forms_that_are_known_are_those_of_diffusers() -> None:
    from diffusers.pipelines import auto_pipeline as auto

    found = {}
    for text, task in auto.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.items():
        form = auto.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING.get(text)
        if form is not None and {"image", "strength"} <= set(inspect.signature(form.__call__).parameters):
            found[task.__name__] = form.__name__
    assert {name: form for name, form in found.items() if "Control" not in name and "PAG" not in name} == IMAGE_TO_IMAGE


def test_images_are_read_upright_in_colour_and_brought_to_size_undistorted() -> None:
    rotated = Image.Exif()
    rotated[0x0112] = 6  # the camera was held upright: turn by 90 degrees
    assert read_image(_encoded(_gradient(80, 40), "JPEG", exif=rotated)).size == (40, 80)
    for mode in ("L", "RGBA", "P", "1", "I;16", "CMYK"):
        source = _gradient().convert("L").convert(mode) if mode == "I;16" else _gradient().convert(mode)
        assert read_image(_encoded(source, "JPEG" if mode == "CMYK" else "PNG")).mode == "RGB"
    square = Image.new("RGB", (300, 100))
    square.paste((255, 255, 255), (100, 0, 200, 100))
    placed = place_image(square, Shape(width=64, height=64, steps=1))
    assert placed.size == (64, 64)
    assert min(placed.convert("L").tobytes()) > 200  # the middle third, and all of it


def _png_of(width: int, height: int) -> bytes:
    """A few bytes that claim any size: what a decompression bomb begins with."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1_000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 100,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        _encoded(_gradient(), "GIF"),
        _encoded(_gradient(), "TIFF"),
        _encoded(_gradient(), "BMP"),
        _encoded(_gradient())[:-40],
        _encoded(_gradient(), "JPEG")[:400],
        _png_of(60_000, 60_000),
        _png_of(16_384, 16_384),
        _png_of(2**31 - 1, 2**31 - 1),
        _png_of(limits.SIDE_PX_MAX + 1, 1),
        _png_of(0, 0),
        _png_of(500, 500),
        b"\x89PNG\r\n\x1a\n" + b"\xff" * 50,
    ],
    ids=range(15),
)
def test_what_is_no_image_of_bounded_size_is_refused_by_field(data: bytes) -> None:
    with pytest.raises(FieldError) as refused:
        read_image(data)
    assert refused.value.field == "inputs.image"
    assert len(str(refused.value)) < 500
