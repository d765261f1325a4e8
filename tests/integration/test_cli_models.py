"""`atoll models add` and `build-starters`: from a folder that diffusers wrote to a model that can be asked for."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from agents.engine.manifest import MANIFEST_NAME, write_manifest
from agents.engine.starter_adapters import build_starter_adapters
from agents.engine.starters import build_starters
from atoll.cli.app import main
from atoll.cli.exits import Exit
from atoll.model.ids import ModelId
from atoll.model.modelspec import Modality
from tests.integration.running_orchestrator import orchestrator

Shown = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def starters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("origin")
    build_starters(folder)
    return folder


@pytest.fixture
def own(starters: Path, tmp_path: Path) -> Path:
    """A pipeline that no catalogue knows."""
    folder = tmp_path / "mine"
    shutil.copytree(starters / "tiny-image", folder)
    (folder / MANIFEST_NAME).unlink()
    write_manifest(folder, model_id=ModelId("mine"), modality=Modality.IMAGE)
    return folder


async def test_models_are_added_from_their_folders(tmp_path: Path, starters: Path, own: Path, capsys: Shown) -> None:
    async with orchestrator(tmp_path / "data") as running:

        async def run(*arguments: str) -> tuple[int, str, str]:
            capsys.readouterr()
            code = await asyncio.to_thread(main, [*arguments, "--address", str(running.address)])
            shown = capsys.readouterr()
            return code, shown.out, shown.err

        code, out, _ = await run("models", "add", str(starters / "tiny-image"), str(starters / "tiny-video"))
        assert code == Exit.OK
        assert [line.split(",")[0] for line in out.splitlines()] == ["model/tiny-image added", "model/tiny-video added"]
        assert "unchanged" in (await run("models", "add", str(starters / "tiny-image")))[1]
        origin = tmp_path / "origin"
        code, _, err = await run("models", "add", str(own), "--origin", str(origin), "--title", "Mine", "--size", "64x32", "--steps", "3")
        assert (code, err) == (Exit.OK, f"mine: its files are at {origin / 'mine'}\n")
        assert (origin / "mine" / MANIFEST_NAME).is_file()
        spec: dict[str, Any] = json.loads((await run("models", "get", "mine", "-o", "json"))[1])["spec"]
        assert (spec["title"], spec["origin_path"], spec["pipeline_class"]) == ("Mine", "mine", "StableDiffusionPipeline")
        assert (spec["default_shape"]["width"], spec["default_shape"]["height"], spec["default_shape"]["steps"]) == (64, 32, 3)
        assert spec["physics"]["estimated"] is True
        # The same weights, counted by a FLOP counter when the starter was made.
        assert spec["physics"]["denoiser_params"] == 1_687_652
        assert (await run("submit", "mine", "--prompt", "a lighthouse"))[0] == Exit.OK
        assert spec["compiled"] is False
        assert "added" in (await run("models", "add", str(own), "--compile"))[1], "a change"
        assert json.loads((await run("models", "get", "mine", "-o", "json"))[1])["spec"]["compiled"] is True
        assert "compile" in (await run("models", "get", "mine", "-o", "wide"))[1]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "unet" / "weights.bin").write_bytes(b"\x80\x04"), "unet/weights.bin"),
        (lambda folder: (folder / "model_index.json").unlink(), "model_index.json"),
        (lambda folder: (folder / MANIFEST_NAME).unlink(), MANIFEST_NAME),
        (lambda folder: (folder / "unet" / "config.json").write_text("{}"), "unet/config.json"),
    ],
)
def test_what_is_wrong_in_a_folder_is_named(spoil: Any, said: str, own: Path, capsys: Shown) -> None:
    """Also without an orchestrator: the folder is looked at first."""
    spoil(own)
    assert main(["models", "add", str(own), "--address", "127.0.0.1:1"]) == Exit.USAGE
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert said in error
    assert "exactly the files it lists" in hint


def test_starters_are_built_where_they_are_wanted(starters: Path, tmp_path: Path, capsys: Shown) -> None:
    assert main(["models", "build-starters", "--to", str(starters), "--only", "tiny-image"]) == Exit.OK
    shown = capsys.readouterr()
    adapters = [starters / "adapters" / f"{name}.safetensors" for name in ("tiny-ink", "tiny-wash")]
    assert shown.out.splitlines() == [str(starters / "tiny-image"), *map(str, adapters)]
    assert shown.err.startswith("tiny-image: already built\n")
    assert main(["models", "build-starters", "--to", str(starters), "--only", "tiny-image"]) == Exit.OK
    assert capsys.readouterr().err == "tiny-image: already built\n"
    assert main(["models", "build-starters", "--to", str(tmp_path), "--only", "huge"]) == Exit.USAGE
    assert capsys.readouterr().err.startswith("error: model is 'huge': expected one of tiny-image, tiny-video")


async def test_adapters_are_added_from_their_files_listed_and_removed(tmp_path: Path, starters: Path, own: Path, capsys: Shown) -> None:
    (built, *_) = build_starter_adapters(starters, build_starters(starters))
    async with orchestrator(tmp_path / "data") as running:

        async def run(*arguments: str) -> tuple[int, str, str]:
            capsys.readouterr()
            code = await asyncio.to_thread(main, [*arguments, "--address", str(running.address)])
            shown = capsys.readouterr()
            return code, shown.out, shown.err

        await run("models", "add", str(starters / "tiny-image"), str(own))
        code, out, _ = await run("adapters", "add", str(built.path))
        assert (code, out.split(",")[:2]) == (Exit.OK, ["adapter/tiny-ink added", " rank 4"])
        assert "unchanged" in (await run("adapters", "add", str(built.path)))[1]
        sketch = tmp_path / "sketch.safetensors"
        shutil.copyfile(built.path, sketch)
        code, _, err = await run("adapters", "add", str(sketch))
        assert (code, "--model or --family" in err) == (Exit.USAGE, True)
        origin = tmp_path / "origin"
        code, _, err = await run("adapters", "add", str(sketch), "--model", "mine", "--origin", str(origin), "--title", "Sketch")
        assert (code, err) == (Exit.OK, f"sketch: its file is at {origin / 'adapters' / 'sketch.safetensors'}\n")
        assert (origin / "adapters" / "sketch.safetensors").read_bytes() == built.path.read_bytes()
        spec = json.loads((await run("adapters", "get", "adapter/sketch", "-o", "json"))[1])["spec"]
        assert (spec["title"], spec["model_ids"], spec["rank"]) == ("Sketch", ["mine"], 4)
        assert (spec["weights_digest"], spec["origin_path"]) == (built.spec.weights_digest, "adapters/sketch.safetensors")
        code, out, _ = await run("adapters", "add", "--figures", "noir", "--model", "mine", "--rank", "32", "--weights", "75MB")
        assert (code, "75.0 MB" in out) == (Exit.OK, True)
        assert (await run("adapters", "list", "-o", "name"))[1].split() == ["adapter/noir", "adapter/sketch", "adapter/tiny-ink"]
        assert (await run("adapters", "list", "--model", "mine", "-o", "name"))[1].split() == ["adapter/noir", "adapter/sketch"]
        code, _, err = await run("submit", "mine", "--adapter", "noir")
        assert (code, "only a rehearsal (--simulated) can use it" in err) == (Exit.USAGE, True)
        assert (await run("submit", "mine", "--adapter", "noir:0.5", "--simulated"))[0] == Exit.OK
        # It is known, and the fleet has no site yet.
        assert (await run("quote", "mine", "--adapter", "noir:0.5", "--simulated"))[0] == Exit.UNDECIDED
        assert (await run("adapters", "remove", "noir"))[0] == Exit.USAGE
        assert (await run("adapters", "remove", "noir", "--reason", "superseded"))[1] == "adapter/noir removed\n"
        assert (await run("adapters", "get", "noir"))[0] == Exit.NOT_FOUND
        assert (await run("adapters", "add", str(sketch), "--model", "mien"))[0] == Exit.USAGE


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.bin", b"\x80\x04", "expected a .safetensors file"),
        ("b.safetensors", b"\x80\x04\x95 a pickle", "b.safetensors"),
        ("c.safetensors", b"\x02\x00\x00\x00\x00\x00\x00\x00{}", "holds no LoRA layers"),
        ("no name.safetensors", None, "adapter_id"),
        ("nowhere.safetensors", None, "cannot read"),
    ],
)
def test_what_is_wrong_with_the_file_of_an_adapter_is_named(
    name: str, content: bytes | None, said: str, tmp_path: Path, starters: Path, capsys: Shown
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    elif name == "no name.safetensors":
        shutil.copyfile(build_starter_adapters(starters, build_starters(starters))[0].path, path)
    assert main(["adapters", "add", str(path), "--model", "m", "--address", "127.0.0.1:1"]) == Exit.USAGE
    assert said in capsys.readouterr().err
