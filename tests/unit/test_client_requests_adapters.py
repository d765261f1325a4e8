"""What clients say of adapters and images before anything is sent."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from atoll.client import InputError, JobRequest, transfers
from atoll.client.requests import adapter_use
from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.ids import AdapterId
from atoll.model.modelspec import AdapterUse


@pytest.mark.parametrize(("text", "scale_milli"), [("ink", 1_000), ("ink:0.8", 800), ("ink:-2", -2_000), ("ink:0", 0), ("ink:1e1", 10_000)])
def test_a_lora_and_its_scale_are_read(text: str, scale_milli: int) -> None:
    assert adapter_use("adapters[0]", text) == AdapterUse(adapter_id=AdapterId("ink"), scale_milli=scale_milli)


@pytest.mark.parametrize("text", ["", ":1", "ink:", "ink:x", "ink:nan", "ink:inf", "ink:-1e9", "../ink", "ink:1:2", "ink:10.1", "i" * 300])
def test_what_is_no_lora_is_refused_by_field(text: str) -> None:
    with pytest.raises(FieldError, match=r"^adapters\[3\] is "):
        adapter_use("adapters[3]", text)


def _png() -> bytes:
    data = BytesIO()
    Image.new("RGB", (8, 8), "red").save(data, format="PNG")
    return data.getvalue()


def test_an_image_is_described_before_it_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(_png())
    by_path, by_bytes = (JobRequest(model="m", image=image).described() for image in (path, _png()))
    assert by_path.image == by_bytes.image
    spec = by_path.to_proto().spec
    assert (spec.inputs[0].name, spec.inputs[0].bytes, spec.strength_milli) == ("image", len(_png()), 600)
    assert replace(by_path, strength=0.25).to_proto().spec.strength_milli == 250
    with pytest.raises(InputError, match="image"):
        JobRequest(model="m", image=path).to_proto()


@pytest.mark.parametrize("strength", [0, -0.1, 1.1, float("nan"), 0.0001])
def test_a_strength_that_is_none_is_refused(strength: float) -> None:
    request = JobRequest(model="m", image=_png(), strength=strength).described()
    with pytest.raises(InputError, match="strength"):
        request.to_proto()


def test_files_that_are_no_picture_are_refused_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in (b"", b"GIF89a", tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError):
            JobRequest(model="m", image=source).described()
    monkeypatch.setattr(limits, "IMAGE_BYTES_MAX", 10)
    with pytest.raises(InputError, match="at most 10"):
        JobRequest(model="m", image=_png()).described()


@pytest.mark.parametrize(("path", "words"), [("/dev/zero", "no plain file"), ("/tmp", "a folder"), ("/nope/picture.png", "cannot read")])
def test_what_has_no_end_is_not_read(path: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        transfers.digest_of(Path(path))
