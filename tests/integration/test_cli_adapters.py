"""Adapters and images to begin with, from the command line to the pixels: a real site with Ray and diffusers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the worker extra")
pytest.importorskip("diffusers", reason="needs the worker extra")

from agents.engine.encode import PictureFacts, pixel_digest, read_metadata
from agents.engine.starter_adapters import STARTER_ADAPTERS
from atoll.cli.app import main
from atoll.cli.exits import Exit
from atoll.client import Client, InputError, JobRequest
from tests.integration.test_cli_up import atoll_up

Shown = pytest.CaptureFixture[str]


@pytest.mark.slow
@pytest.mark.timeout(300)  # a start of Ray and torch takes up to a minute and a half where many share two cores
def test_a_lora_and_an_image_change_the_picture_and_leave_no_trace(
    short_path: Path, tmp_path: Path, free_ports: Callable[[], int], capsys: Shown
) -> None:
    port = free_ports()
    at = ["--address", f"127.0.0.1:{port}"]

    def picture(name: str, *more: str) -> Path:
        out = tmp_path / f"{name}.png"
        asked = ["submit", "tiny-image", "--prompt", "a lighthouse", "--seed", "7", "--steps", "4", *more, "--out", str(out)]
        assert main([*asked, *at]) == Exit.OK
        return out

    with atoll_up(short_path, port, tmp_path / "up.log"):
        plain = picture("plain")
        ink = picture("ink", "--adapter", "tiny-ink:0.8")
        said = capsys.readouterr().out
        job = said.splitlines()[-2].split()[0]
        again = picture("again", "--adapter", "tiny-ink:0.8")
        both = picture("both", "--adapter", "tiny-wash", "--adapter", "tiny-ink:0.8")
        after = picture("after")
        assert pixel_digest(ink) == pixel_digest(again)
        assert pixel_digest(plain) == pixel_digest(after)
        assert len({pixel_digest(one) for one in (plain, ink, both)}) == 3
        assert PictureFacts.from_text(read_metadata(ink)).adapters == (("tiny-ink", 0.8),)
        assert PictureFacts.from_text(read_metadata(plain)).adapters == ()

        begun = picture("begun", "--image", str(ink), "--strength", "0.5")
        assert pixel_digest(begun) == pixel_digest(picture("begun-again", "--image", str(ink), "--strength", "0.5"))
        assert pixel_digest(begun) not in {pixel_digest(one) for one in (plain, ink)}
        assert PictureFacts.from_text(read_metadata(begun)).strength == 0.5
        assert pixel_digest(picture("last")) == pixel_digest(plain)

        capsys.readouterr()
        assert main(["jobs", "explain", job, *at]) == Exit.OK
        assert "with tiny-ink at 0.8" in capsys.readouterr().out
        assert main(["adapters", "get", "tiny-ink", "-o", "json", *at]) == Exit.OK
        found = json.loads(capsys.readouterr().out)
        assert (found["loaded_replicas"], found["loaded_sites"], found["disk_sites"]) == (1, ["local"], ["local"])
        _through_the_sdk(f"127.0.0.1:{port}", ink.read_bytes())
        _refusals(at, tmp_path, capsys)


def _through_the_sdk(address: str, image: bytes) -> None:
    with Client(address) as client:
        request = JobRequest(
            model="tiny-image", prompt="a lighthouse", seed=7, steps=4, adapters=["tiny-ink:-1", "tiny-wash"], image=image, strength=0.75
        )
        assert client.quote_request(request).refusal == ""
        done = client.result(client.submit_request(request), timeout_s=60)
        assert done.spec.image is not None
        assert [(use.adapter_id, use.scale_milli) for use in done.spec.adapters] == [("tiny-ink", -1_000), ("tiny-wash", 1_000)]
        with pytest.raises(InputError, match="expected a PNG or a JPEG"):
            client.submit("tiny-image", image=b"GIF89a and more")
        with pytest.raises(InputError, match="strength"):
            client.submit("tiny-image", strength=0.5)


def _refusals(at: list[str], tmp_path: Path, capsys: Shown) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    capsys.readouterr()
    for more, words in (
        (["tiny-image", "--adapter", "tiny-inc"], "did you mean 'tiny-ink'"),
        (["tiny-video", "--adapter", "tiny-ink"], "adapter tiny-ink fits tiny-image, not model tiny-video"),
        (["tiny-image", "--adapter", "tiny-ink:strong"], "expected NAME or NAME:SCALE"),
        (["tiny-image", "--adapter", "tiny-ink:nan"], "expected NAME or NAME:SCALE"),
        (["tiny-image", *["--adapter", "tiny-ink"] * 9], "at most 8"),
        (["tiny-image", "--image", str(text)], "expected a PNG or a JPEG"),
        (["tiny-image", "--image", str(tmp_path / "nowhere.png")], "cannot read"),
        (["tiny-image", "--strength", "0.5"], "an image to change by it"),
        (["tiny-video", "--image", str(tmp_path / "ink.png")], "cannot begin with an image"),
    ):
        assert main(["submit", *more, *at]) != Exit.OK, more
        said = capsys.readouterr().err
        assert words in said, (more, said)
        assert said.count("error: ") == 1


def test_starter_adapters_are_named_by_their_files() -> None:
    assert [spec.origin_path for spec in STARTER_ADAPTERS] == [f"adapters/{spec.adapter_id}.safetensors" for spec in STARTER_ADAPTERS]
