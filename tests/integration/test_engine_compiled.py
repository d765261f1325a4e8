"""Compiled denoisers on real, tiny pipelines: the same picture, made by code that is kept in a folder and works in another process."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
pytest.importorskip("torch", reason="needs the worker extra")
pytest.importorskip("diffusers", reason="needs the worker extra")

import numpy as np
import torch

from agents.engine.compiled import PIXEL_TOLERANCE, check_compiler
from agents.engine.errors import EngineError, GenerationStoppedError
from agents.engine.pipeline import Engine
from agents.engine.request import AdapterFile, Generation, GenerationRequest
from agents.engine.starter_adapters import build_starter_adapters
from agents.engine.starters import StarterModel, build_starters
from atoll.model.attempt import FailureKind
from atoll.model.ids import ModelId
from atoll.model.shape import Shape

# The transformer's blocks are one piece of code, a UNet's are one per width: the film is compiled in half the time.
FILM = GenerationRequest(prompt="waves", shape=Shape(width=32, height=32, frames=5, steps=2, cfg_passes=2), seed=7)
_OTHER_PROCESS = """
import sys
from pathlib import Path
from agents.engine.pipeline import Engine
from tests.integration.test_engine_compiled import FILM, pixels
import numpy as np
import torch
made = Engine().load(Path(sys.argv[1])).generate(FILM, code=Path(sys.argv[2]))
np.save(sys.argv[3], pixels(made))
counted = torch._dynamo.utils.counters["inductor"]
print(made.compile_us, counted["fxgraph_cache_hit"], counted["fxgraph_cache_miss"])
"""


@pytest.fixture(scope="module")
def starters(tmp_path_factory: pytest.TempPathFactory) -> tuple[StarterModel, ...]:
    return build_starters(tmp_path_factory.mktemp("starters"))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


def pixels(made: Generation) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    """Channels of all frames."""
    return np.stack([np.asarray(frame, dtype=np.int16) for item in made.items for frame in item.frames])


def test_a_film_is_the_same_and_its_code_serves_the_next_call_and_another_process(
    engine: Engine, starters: tuple[StarterModel, ...], tmp_path: Path
) -> None:
    film = next(one for one in starters if one.spec.model_id == ModelId("tiny-video"))
    model, folder = engine.load(film.folder), tmp_path / "code"
    eager = pixels(model.generate(FILM))
    told: list[int] = []
    torch.compiler.reset()  # whatever other tests had compiled
    first = model.generate(FILM, code=folder, on_step=lambda done, steps: told.append(done))
    assert first.compile_us > 0 and told == [1, 2]
    assert model.has_code(folder) and not model.has_code(tmp_path)
    assert np.abs(pixels(first) - eager).max() <= PIXEL_TOLERANCE
    again = model.generate(replace(FILM, prompt="another", shape=replace(FILM.shape, steps=3)), code=folder)
    assert again.compile_us == 0, "neither words nor steps need other code"
    assert np.array_equal(pixels(model.generate(FILM)), eager), "without a folder it runs as it is"
    with pytest.raises(GenerationStoppedError):
        model.generate(FILM, code=folder, should_stop=lambda: True)

    # What is in the folder is all that another process needs, wherever it lies.
    moved, result = tmp_path / "moved", tmp_path / "pixels.npy"
    shutil.copytree(folder, moved)
    # Kernels: a process tries once what its processor can do, with small libraries in the folder that it compiles into first.
    before = sorted(path.relative_to(moved) for path in moved.rglob("*.main.so"))
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", _OTHER_PROCESS, str(film.folder), str(moved), str(result)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    compile_us, hits, misses = map(int, done.stdout.split()[-3:])
    assert compile_us > 0 and hits > 0 and misses == 0
    assert np.array_equal(np.load(result), pixels(first))
    assert before and sorted(path.relative_to(moved) for path in moved.rglob("*.main.so")) == before, "nothing was compiled again"

    # An adapter's layers are part of what is compiled: with one, and without it again, the film is as it is eager.
    drift = next(one for one in build_starter_adapters(tmp_path, starters) if film.spec.model_id in one.spec.model_ids)
    model.adapt([AdapterFile(adapter_id=drift.spec.adapter_id, path=drift.path, digest=drift.spec.weights_digest)])
    drifted = replace(FILM, adapters=((drift.spec.adapter_id, 1.0),))
    changed = pixels(model.generate(drifted))
    assert np.abs(changed - eager).max() > 2 * PIXEL_TOLERANCE
    assert np.abs(pixels(model.generate(drifted, code=tmp_path / "drifted")) - changed).max() <= PIXEL_TOLERANCE
    assert np.abs(pixels(model.generate(FILM, code=folder)) - eager).max() <= PIXEL_TOLERANCE

    # A pipeline that leaves is not held by what was compiled for it.
    denoiser = weakref.ref(model._pipeline.transformer)
    model.unload()
    gc.collect()
    assert denoiser() is None


def test_without_a_compiler_a_model_is_refused_with_what_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    check_compiler("cpu")
    monkeypatch.setenv("CXX", "no-such-compiler")
    wanted = r"needs a C\+\+ compiler, and no-such-compiler is not on this host's PATH.*without --compile"
    with pytest.raises(EngineError, match=wanted) as raised:
        check_compiler("cpu")
    assert raised.value.kind is FailureKind.LOAD_FAILED
