"""Adapters on real pipelines: they change pixels while they are active, and leave none changed."""

from __future__ import annotations

import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
pytest.importorskip("torch", reason="needs the worker extra")
pytest.importorskip("diffusers", reason="needs the worker extra")

import numpy as np
import safetensors.numpy

from agents.engine import encode
from agents.engine.errors import BadWeightsError, EngineError
from agents.engine.manifest import hash_file
from agents.engine.pipeline import Engine, LoadedPipeline
from agents.engine.request import AdapterFile, GenerationRequest
from agents.engine.starter_adapters import StarterAdapter, build_starter_adapters
from agents.engine.starters import StarterModel, build_starters
from atoll.model.attempt import FailureKind
from atoll.model.errors import StateError
from atoll.model.ids import AdapterId
from atoll.model.shape import Shape

PLAIN = GenerationRequest(prompt="a lighthouse", shape=Shape(width=64, height=64, steps=3, cfg_passes=2), seed=7)
INK, WASH, DRIFT = AdapterId("tiny-ink"), AdapterId("tiny-wash"), AdapterId("tiny-drift")


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
def adapters(root: Path, models: tuple[StarterModel, ...]) -> dict[AdapterId, StarterAdapter]:
    return {one.spec.adapter_id: one for one in build_starter_adapters(root, models)}


@pytest.fixture
def model(engine: Engine, models: tuple[StarterModel, ...]) -> LoadedPipeline:
    return engine.load(models[0].folder)


def file_of(adapter: StarterAdapter) -> AdapterFile:
    return AdapterFile(adapter_id=adapter.spec.adapter_id, path=adapter.path, digest=adapter.spec.weights_digest)


def own_file(path: Path, name: str = "own") -> AdapterFile:
    return AdapterFile(adapter_id=AdapterId(name), path=path, digest="sha256:" + hash_file(path)[0])


def pixels(model: LoadedPipeline, **scales: float) -> str:
    uses = tuple((AdapterId(name.replace("_", "-")), scale) for name, scale in scales.items())
    return encode.pixel_digest(model.generate(replace(PLAIN, adapters=uses)).items[0].frames)


def test_every_build_gives_the_same_bytes(
    tmp_path: Path, models: tuple[StarterModel, ...], adapters: dict[AdapterId, StarterAdapter]
) -> None:
    again = build_starter_adapters(tmp_path, models)
    assert [one.spec for one in again] == [one.spec for one in adapters.values()]
    assert all(one.path == tmp_path / one.spec.origin_path for one in again)
    assert all(one.spec.check().weights_bytes < 1_000_000 for one in again)


def test_adapters_change_pixels_by_scale_together_and_apart(model: LoadedPipeline, adapters: dict[AdapterId, StarterAdapter]) -> None:
    before = model.resident_bytes
    plain = pixels(model)
    model.adapt([file_of(adapters[INK]), file_of(adapters[WASH])])
    assert model.adapters == (INK, WASH)
    added = sum(adapters[name].spec.weights_bytes for name in (INK, WASH))
    assert added * 0.8 < model.resident_bytes - before < added
    found = {
        "plain": pixels(model),
        "ink": pixels(model, tiny_ink=1.0),
        "half ink": pixels(model, tiny_ink=0.5),
        "no ink": pixels(model, tiny_ink=0.0),
        "anti ink": pixels(model, tiny_ink=-1.0),
        "wash": pixels(model, tiny_wash=1.0),
        "both": pixels(model, tiny_ink=1.0, tiny_wash=1.0),
        "ink again": pixels(model, tiny_ink=1.0, tiny_wash=0.0),
    }
    assert found["plain"] == found["no ink"] == plain
    assert found["ink again"] == found["ink"]
    assert len(set(found.values())) == 6, found


def test_what_was_loaded_and_unloaded_leaves_no_trace(model: LoadedPipeline, adapters: dict[AdapterId, StarterAdapter]) -> None:
    plain, before = pixels(model), model.resident_bytes
    model.adapt([file_of(adapters[INK]), file_of(adapters[WASH])])
    wash = pixels(model, tiny_wash=0.7)
    model.adapt([], unload=[INK])
    assert pixels(model, tiny_wash=0.7) == wash
    with pytest.raises(StateError, match="tiny-ink is not loaded on tiny-image"):
        pixels(model, tiny_ink=1.0)
    model.adapt([], unload=[WASH, INK])
    assert (pixels(model), model.resident_bytes, model.adapters) == (plain, before, ())
    model.adapt([file_of(adapters[WASH])])
    assert pixels(model, tiny_wash=0.7) == wash


def test_only_what_is_missing_is_read_and_put_on(model: LoadedPipeline, adapters: dict[AdapterId, StarterAdapter], tmp_path: Path) -> None:
    ink, wash = file_of(adapters[INK]), file_of(adapters[WASH])
    model.adapt((ink, wash))
    together = pixels(model, tiny_ink=0.8, tiny_wash=0.5)
    model.adapt((), (INK, WASH))
    copied = replace(ink, path=Path(shutil.copy(ink.path, tmp_path / "copied.safetensors")))
    model.adapt((copied,))
    copied.path.unlink()  # what is on the pipeline is not looked for again
    model.adapt((wash,))
    model.adapt((copied, wash))
    assert model.adapters == (INK, WASH)
    assert pixels(model, tiny_ink=0.8, tiny_wash=0.5) == together


def test_another_version_takes_the_place_of_the_first(
    model: LoadedPipeline, adapters: dict[AdapterId, StarterAdapter], tmp_path: Path
) -> None:
    model.adapt([file_of(adapters[INK])])
    ink, size = pixels(model, tiny_ink=1.0), model.resident_bytes
    tensors = {name: tensor * np.float32(0.5) for name, tensor in safetensors.numpy.load_file(adapters[INK].path).items()}
    safetensors.numpy.save_file(tensors, tmp_path / "newer.safetensors")
    model.adapt([own_file(tmp_path / "newer.safetensors", INK)])
    assert (model.adapters, model.resident_bytes) == ((INK,), size)
    assert pixels(model, tiny_ink=1.0) != ink


def test_the_names_of_other_trainers_are_understood(
    model: LoadedPipeline, adapters: dict[AdapterId, StarterAdapter], tmp_path: Path
) -> None:
    model.adapt([file_of(adapters[INK])])
    tensors: dict[str, object] = {}
    for name, tensor in safetensors.numpy.load_file(adapters[INK].path).items():
        layer, _, which = name.removeprefix("unet.").partition(".lora_")
        kohya = "lora_unet_" + layer.replace(".", "_")
        tensors[f"{kohya}.lora_{'down' if which.startswith('A') else 'up'}.weight"] = tensor
        tensors[f"{kohya}.alpha"] = np.array(4, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "kohya.safetensors")
    model.adapt([own_file(tmp_path / "kohya.safetensors")])
    assert pixels(model, own=1.0) == pixels(model, tiny_ink=1.0)


def _of_other_sizes(path: Path, source: Path) -> Path:
    """The same layers, twice as wide: as of a larger model of the same class."""
    tensors = {}
    for name, tensor in safetensors.numpy.load_file(source).items():
        axis = 1 if "lora_A" in name else 0
        tensors[name] = np.repeat(tensor, 2, axis=axis)
    safetensors.numpy.save_file(tensors, path)
    return path


def test_an_adapter_of_another_base_is_refused_and_the_pipeline_stays_as_it_was(
    model: LoadedPipeline, adapters: dict[AdapterId, StarterAdapter], tmp_path: Path
) -> None:
    wider = own_file(_of_other_sizes(tmp_path / "wider.safetensors", adapters[INK].path))
    plain, before = pixels(model), model.resident_bytes
    for foreign in (file_of(adapters[DRIFT]), wider):
        with pytest.raises(EngineError, match="does not fit tiny-image, it was made for another base") as refused:
            model.adapt([foreign])
        assert refused.value.kind is FailureKind.BAD_INPUT
        assert (pixels(model), model.resident_bytes, model.adapters) == (plain, before, ())
    model.adapt([file_of(adapters[WASH])])
    wash, size = pixels(model, tiny_wash=1.0), model.resident_bytes
    for foreign in (file_of(adapters[DRIFT]), wider):
        with pytest.raises(EngineError, match="another base"):
            model.adapt([foreign])
        assert (pixels(model), pixels(model, tiny_wash=1.0), model.resident_bytes) == (plain, wash, size)


def test_an_adapter_of_a_video_model_changes_its_film(
    engine: Engine, models: tuple[StarterModel, ...], adapters: dict[AdapterId, StarterAdapter]
) -> None:
    film = engine.load(models[1].folder)
    request = GenerationRequest(prompt="waves", shape=Shape(width=64, height=64, frames=5, steps=2), seed=3)
    plain = encode.pixel_digest(film.generate(request).items[0].frames)
    film.adapt([file_of(adapters[DRIFT])])
    drifting = replace(request, adapters=((DRIFT, 1.0),))
    assert encode.pixel_digest(film.generate(drifting).items[0].frames) != plain
    assert encode.pixel_digest(film.generate(request).items[0].frames) == plain


def test_what_is_no_sound_file_is_refused(model: LoadedPipeline, adapters: dict[AdapterId, StarterAdapter], tmp_path: Path) -> None:
    plain = pixels(model)
    path = tmp_path / "own.safetensors"
    whole = adapters[INK].path.read_bytes()
    for content, kind in (
        (pickle.dumps({"weights": [1, 2, 3]}), FailureKind.BAD_WEIGHTS),
        (b"", FailureKind.BAD_WEIGHTS),
        (b"PK\x03\x04" + whole, FailureKind.BAD_WEIGHTS),
        ((9).to_bytes(8, "little") + b'{"a": [}]', FailureKind.BAD_WEIGHTS),
        (whole[: len(whole) // 2], FailureKind.BAD_INPUT),
        (safetensors.numpy.save({"unet.conv_in.weight": np.zeros((2, 2), np.float32)}), FailureKind.BAD_INPUT),
    ):
        path.write_bytes(content)
        with pytest.raises(EngineError) as refused:
            model.adapt([own_file(path)])
        assert refused.value.kind is kind, content[:20]
    path.write_bytes(whole[:-1] + b"\x01")
    with pytest.raises(BadWeightsError, match="digest"):
        model.adapt([AdapterFile(adapter_id=INK, path=path, digest=adapters[INK].spec.weights_digest)])
    path.unlink()
    shutil.copy(adapters[INK].path, tmp_path / "elsewhere.safetensors")
    path.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(BadWeightsError, match="no regular file"):
        model.adapt([AdapterFile(adapter_id=INK, path=path, digest=adapters[INK].spec.weights_digest)])
    assert (pixels(model), model.adapters) == (plain, ())


def test_an_unloaded_pipeline_takes_none(model: LoadedPipeline, adapters: dict[AdapterId, StarterAdapter]) -> None:
    model.adapt([file_of(adapters[INK])])
    model.unload()
    assert model.adapters == ()
    with pytest.raises(StateError, match="unloaded"):
        model.adapt([file_of(adapters[INK])])
