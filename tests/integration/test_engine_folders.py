"""Folders that the engine must not load: unsound ones, unknown classes, weights of another model."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
pytest.importorskip("torch", reason="needs the worker extra")
pytest.importorskip("diffusers", reason="needs the worker extra")

from agents.engine.errors import BadWeightsError, EngineError
from agents.engine.manifest import write_manifest
from agents.engine.pipeline import Engine
from agents.engine.starters import StarterModel, build_starters
from atoll.model.attempt import FailureKind
from atoll.model.ids import ModelId
from atoll.model.modelspec import Modality


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


@pytest.fixture(scope="module")
def starters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StarterModel]:
    built = build_starters(tmp_path_factory.mktemp("starters"))
    return {str(starter.spec.model_id): starter for starter in built}


def test_unsound_folders_are_never_loaded(engine: Engine, starters: dict[str, StarterModel], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(starters["tiny-image"].folder, folder)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(BadWeightsError, match=r"vae/diffusion_pytorch_model.safetensors: sha256"):
        engine.load(folder, verify_digests=True)
    weights.write_bytes(kept)
    (folder / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(BadWeightsError, match=r"diffusion_pytorch_model\.bin: .*no pickles, no code"):
        engine.load(folder)


def test_a_class_that_diffusers_does_not_have(engine: Engine, starters: dict[str, StarterModel], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(starters["tiny-image"].folder, folder)
    index = folder / "model_index.json"
    for name in ("MyOwnPipeline", "UNet2DConditionModel"):
        index.write_text(index.read_text().replace("StableDiffusionPipeline", name))
        write_manifest(folder, model_id=ModelId("mine"), modality=Modality.IMAGE)
        with pytest.raises(BadWeightsError, match=rf"{name}.*expected a pipeline class of diffusers"):
            engine.load(folder)
        index.write_text(index.read_text().replace(name, "StableDiffusionPipeline"))


def test_weights_that_do_not_fit_their_configuration(engine: Engine, starters: dict[str, StarterModel], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(starters["tiny-image"].folder, folder)
    config = folder / "unet" / "config.json"
    config.write_text(config.read_text().replace('"cross_attention_dim": 64', '"cross_attention_dim": 32'))
    write_manifest(folder, model_id=ModelId("tiny-image"), modality=Modality.IMAGE)
    with pytest.raises(EngineError, match="cannot load tiny-image") as refused:
        engine.load(folder)
    assert refused.value.kind is FailureKind.LOAD_FAILED
