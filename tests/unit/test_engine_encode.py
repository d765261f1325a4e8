"""Files of results: what they say about themselves, and the digests of their pixels."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PIL", reason="needs the worker extra")
pytest.importorskip("av", reason="needs the worker extra")

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from agents.engine import encode
from agents.engine.encode import PictureFacts
from agents.engine.request import GeneratedItem, Generation, GenerationRequest
from atoll import __version__
from atoll.model.errors import FieldError
from atoll.model.shape import Shape

FACTS = PictureFacts(
    job="job-1",
    attempt=2,
    model="tiny-image",
    model_digest="sha256:" + "0" * 64,
    prompt="a lighthouse",
    negative_prompt="",
    seed=2**63 - 1,
    width=32,
    height=16,
    frames=1,
    fps=16,
    steps=4,
    guidance=7.5,
    batch=1,
    index=0,
    precision="fp32",
)


def picture(shade: int = 0, width: int = 32, height: int = 16) -> Image.Image:
    pixels = bytes((x * 7 + y * 3 + channel * 40 + shade) % 256 for y in range(height) for x in range(width) for channel in range(3))
    return Image.frombytes("RGB", (width, height), pixels)


def film() -> list[Image.Image]:
    return [picture(shade) for shade in range(0, 90, 10)]


def test_a_png_carries_its_facts_and_exactly_its_pixels(tmp_path: Path) -> None:
    data = encode.encode_png(picture(), FACTS.to_text())
    assert data == encode.encode_png(picture(), FACTS.to_text())
    path = tmp_path / "x.png"
    path.write_bytes(data)
    text = encode.read_metadata(path)
    assert text["atoll_version"] == __version__
    assert text["size"] == "32x16"
    assert text["seed"] == "9223372036854775807"
    assert PictureFacts.from_text(text) == FACTS
    assert encode.pixel_digest(path) == encode.pixel_digest([picture()])


def test_an_mp4_carries_its_facts_and_decodes_the_same_everywhere(tmp_path: Path) -> None:
    facts = replace(FACTS, frames=9, fps=8, prompt='灯台 ☂\n"quoted" ; = # \\', guidance=None)
    data = encode.encode_mp4(film(), fps=8, text=facts.to_text())
    assert data == encode.encode_mp4(film(), fps=8, text=facts.to_text())
    path = tmp_path / "x.mp4"
    path.write_bytes(data)
    assert PictureFacts.from_text(encode.read_metadata(path)) == facts
    # The text is no part of the pixels, and encoding plain frames again gives those that are stored.
    assert encode.pixel_digest(path) == encode.pixel_digest_of_mp4(film(), fps=8)
    assert encode.pixel_digest(path) != encode.pixel_digest_of_mp4(film()[::-1], fps=8)
    import av

    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        assert len(frames) == 9
        assert container.streams.video[0].average_rate == 8
        assert container.streams.video[0].codec_context.name == "h264"


@pytest.mark.parametrize("side", [48, 64, 96])
def test_equal_frames_give_equal_bytes_whatever_is_in_memory(side: int) -> None:
    noise = random.Random(1)
    frames = [
        Image.frombytes("RGB", (side // 8, side // 8), noise.randbytes(side // 8 * side // 8 * 3)).resize((side, side)) for _ in range(9)
    ]
    films, held = set(), []
    for _ in range(25):
        held.append(noise.randbytes(noise.randrange(1, 300_000)))
        films.add(encode.encode_mp4(frames, fps=16, text={}))
    assert len(films) == 1


@settings(max_examples=60, deadline=None)
@given(prompt=st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=80))
def test_any_prompt_comes_back_from_a_png(prompt: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "prompt.png"
    path.write_bytes(encode.encode_png(picture(), replace(FACTS, prompt=prompt).to_text()))
    assert PictureFacts.from_text(encode.read_metadata(path)).prompt == prompt


@pytest.mark.parametrize("prompt", ["x" * 16_000, "灯" * 5_000, "\n\t\r", "=;\\#\n[chapter]", ""])
def test_difficult_prompts_come_back_from_both(prompt: str, tmp_path: Path) -> None:
    text = replace(FACTS, prompt=prompt).to_text()
    (tmp_path / "x.png").write_bytes(encode.encode_png(picture(), text))
    (tmp_path / "x.mp4").write_bytes(encode.encode_mp4(film()[:2], fps=8, text=text))
    for name in ("x.png", "x.mp4"):
        assert PictureFacts.from_text(encode.read_metadata(tmp_path / name)).prompt == prompt


def test_pixel_digests_see_pixels_sizes_and_order() -> None:
    frames: list[list[Any]] = [
        [picture()],
        [picture(1)],
        [picture(width=16, height=32)],
        [picture(), picture(1)],
        [picture(1), picture()],
        [],
    ]
    assert len({encode.pixel_digest(each) for each in frames}) == len(frames)
    assert encode.pixel_digest([picture().convert("RGBA")]) == encode.pixel_digest([picture()])


def test_sizes_that_h264_cannot_hold() -> None:
    with pytest.raises(FieldError, match=r"shape is '33x16': expected even width and height"):
        encode.encode_mp4([picture(width=33)], fps=8, text={})


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "x"
    plain = io.BytesIO()
    picture().save(plain, format="PNG")
    for data in (b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", plain.getvalue(), encode.encode_mp4(film()[:1], fps=8, text={})):
        path.write_bytes(data)
        with pytest.raises(FieldError, match="made by Atoll"):
            PictureFacts.from_text(encode.read_metadata(path))
    with pytest.raises(FieldError, match="metadata"):
        PictureFacts.from_text(FACTS.to_text() | {"size": "wide"})


@pytest.mark.parametrize("video", [False, True])
def test_every_item_of_a_generation_becomes_a_file(video: bool, tmp_path: Path) -> None:
    frames = tuple(film()) if video else (picture(),)
    items = tuple(GeneratedItem(frames=frames, seed=seed) for seed in (7, 8))
    shape = Shape(width=32, height=16, frames=len(frames), steps=4, batch=2)
    files = encode.encode_generation(
        Generation(items=items, guidance=5.0, steps_done=4, denoise_us=1, decode_us=1, step_us=1),
        GenerationRequest(prompt="p", shape=shape, seed=7),
        job="job-1",
        attempt=1,
        model="m",
        model_digest="d",
        precision="fp32",
        video=video,
    )
    assert [file.name for file in files] == (["0.mp4", "1.mp4"] if video else ["0.png", "1.png"])
    for index, file in enumerate(files):
        path = tmp_path / file.name
        path.write_bytes(file.data)
        assert encode.pixel_digest(path) == file.pixel_digest
        facts = PictureFacts.from_text(encode.read_metadata(path))
        assert (facts.seed, facts.index, facts.batch) == (7 + index, index, 2)
        assert file.media_type == ("video/mp4" if video else "image/png")
