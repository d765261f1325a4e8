"""Model folders: what is accepted, and how each unsound one is refused."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.engine.errors import BadWeightsError, failure_of
from agents.engine.manifest import (
    MANIFEST_NAME,
    ModelManifest,
    parse_manifest,
    read_manifest,
    verify_folder,
    write_manifest,
)
from atoll.model.attempt import FailureKind
from atoll.model.errors import FieldError
from atoll.model.ids import ModelId
from atoll.model.limits import REASON_CHARS_MAX
from atoll.model.modelspec import Modality

INDEX = {"_class_name": "FluxPipeline", "unet": ["diffusers", "UNet2DConditionModel"], "safety_checker": [None, None]}


def safetensors(payload: bytes) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}}).encode()
    return struct.pack("<Q", len(header)) + header + payload


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "unet").mkdir(parents=True)
    (root / "model_index.json").write_text(json.dumps(INDEX))
    (root / "unet" / "config.json").write_text("{}")
    (root / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(safetensors(bytes(range(64))))
    write_manifest(root, model_id=ModelId("mine"), modality=Modality.IMAGE)
    return root


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / MANIFEST_NAME
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_sound_folder_is_accepted_and_its_manifest_is_stable(folder: Path) -> None:
    hashed: list[int] = []
    manifest = verify_folder(folder, on_bytes=hashed.append)
    assert manifest.pipeline_class == "FluxPipeline"
    assert manifest.total_bytes == sum(hashed) == sum(file.bytes for file in manifest.files)
    assert [file.path for file in manifest.files] == sorted(file.path for file in manifest.files)
    before = (folder / MANIFEST_NAME).read_bytes()
    assert write_manifest(folder, model_id=ModelId("mine"), modality=Modality.IMAGE) == manifest
    assert (folder / MANIFEST_NAME).read_bytes() == before == manifest.to_json()


def test_the_digest_covers_names_and_contents_but_not_the_model_name(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert write_manifest(folder, model_id=ModelId("other"), modality=Modality.IMAGE).digest == manifest.digest
    (folder / "unet" / "config.json").rename(folder / "unet" / "other_config.json")
    assert write_manifest(folder, model_id=ModelId("mine"), modality=Modality.IMAGE).digest != manifest.digest


@pytest.mark.parametrize(
    "name", ["a.bin", "a.pt", "a.pth", "a.ckpt", "a.pkl", "a.pickle", "a.py", "unet/model.so", "a.onnx", "a.zip", "run"]
)
def test_kinds_that_are_never_loaded(folder: Path, name: str) -> None:
    (folder / name).write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(BadWeightsError) as refused:
        verify_folder(folder)
    assert refused.value.file == name
    assert "no pickles, no code" in str(refused.value)
    with pytest.raises(BadWeightsError):
        write_manifest(folder, model_id=ModelId("mine"), modality=Modality.IMAGE)


@pytest.mark.parametrize("content", [pickle.dumps({"w": 1}), b"PK\x03\x04" + bytes(60), b"", b"\x08" + bytes(20)])
def test_a_pickle_under_another_name(folder: Path, content: bytes) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(content)
    with pytest.raises(BadWeightsError, match="not a safetensors file"):
        write_manifest(folder, model_id=ModelId("mine"), modality=Modality.IMAGE)


def test_missing_short_changed_and_unlisted_files(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    kept = weights.read_bytes()
    weights.unlink()
    with pytest.raises(BadWeightsError, match=f"missing: expected a file of {len(kept)} bytes"):
        verify_folder(folder)
    weights.write_bytes(kept[:-1])
    with pytest.raises(BadWeightsError, match=rf"{len(kept) - 1} bytes: expected {len(kept)} bytes"):
        verify_folder(folder)
    weights.write_bytes(kept[:-1] + b"\xff")
    with pytest.raises(BadWeightsError, match=r"sha256 .*: expected"):
        verify_folder(folder)
    verify_folder(folder, digests=False)
    weights.write_bytes(kept)
    (folder / "unet" / "more.json").write_text("{}")
    with pytest.raises(BadWeightsError, match=r"unet/more\.json: not in the manifest"):
        verify_folder(folder)


@pytest.mark.parametrize("target", ["/etc/hostname", "../../secret.json", "config.json"])
def test_links_are_refused_wherever_they_point(folder: Path, target: str) -> None:
    (folder.parent / "secret.json").write_text("{}")
    (folder / "unet" / "link.json").symlink_to(target)
    with pytest.raises(BadWeightsError, match=r"unet/link\.json: a symbolic link"):
        verify_folder(folder)


def test_linked_folders_manifests_and_special_files(folder: Path) -> None:
    linked = folder.parent / "linked"
    linked.symlink_to(folder)
    with pytest.raises(BadWeightsError, match="no folder"):
        verify_folder(linked)
    os.mkfifo(folder / "pipe.json")
    with pytest.raises(BadWeightsError, match=r"pipe\.json: a special file"):
        verify_folder(folder)
    (folder / "pipe.json").unlink()
    (folder / MANIFEST_NAME).rename(folder.parent / "elsewhere.json")
    with pytest.raises(BadWeightsError, match="No such file"):
        verify_folder(folder)
    (folder / MANIFEST_NAME).symlink_to(folder.parent / "elsewhere.json")
    with pytest.raises(BadWeightsError, match="expected a readable regular file"):
        verify_folder(folder)
    (folder / MANIFEST_NAME).unlink()
    os.mkfifo(folder / MANIFEST_NAME)
    with pytest.raises(BadWeightsError, match="not a regular file"):
        verify_folder(folder)


@pytest.mark.parametrize(
    "path",
    ["../x.json", "/etc/x.json", "a/../b.json", "a//b.json", "a\\b.json", "a\n.json", "x\x00.json", ".hid.json", "",
     "a/b/c/d/e/f/g.json", "x" * 200 + ".json", 7, None, MANIFEST_NAME, "x.bin"],
)  # fmt: skip
def test_paths_that_a_manifest_may_not_hold(folder: Path, path: object) -> None:
    edit(folder, lambda value: value["files"][0].update(path=path))
    with pytest.raises(BadWeightsError):
        read_manifest(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"format_version": True},
        {"model_id": "../x"},
        {"model_id": "a/b"},
        {"pipeline_class": "os.system"},
        {"pipeline_class": None},
        {"modality": "smell"},
        {"files": []},
        {"files": {}},
        {"files": [{"path": "model_index.json"}]},
        {"digest": "sha256:" + "0" * 64},
        {"surprise": 1},
    ],
)
def test_fields_that_are_wrong(folder: Path, change: dict[str, object]) -> None:
    edit(folder, lambda value: value.update(change))
    with pytest.raises(BadWeightsError) as refused:
        verify_folder(folder)
    assert MANIFEST_NAME in str(refused.value)
    assert refused.value.kind is FailureKind.BAD_WEIGHTS


@pytest.mark.parametrize("size", [-1, 1.5, True, "7", None, 10**19])
def test_sizes_that_are_wrong(folder: Path, size: object) -> None:
    edit(folder, lambda value: value["files"][0].update(bytes=size))
    with pytest.raises(BadWeightsError, match="bytes"):
        read_manifest(folder)


def test_a_file_listed_twice(folder: Path) -> None:
    edit(folder, lambda value: value["files"].insert(0, value["files"][0]))
    with pytest.raises(BadWeightsError, match="each path once"):
        read_manifest(folder)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000, b"null", b"x" * 5_000_000])
def test_what_is_no_manifest(data: bytes) -> None:
    with pytest.raises(BadWeightsError, match=r"where: .*expected"):
        parse_manifest(data, "where")


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode()))
def test_any_bytes_are_a_manifest_or_refused(data: bytes) -> None:
    try:
        parse_manifest(data, "where")
    except BadWeightsError:
        pass


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (INDEX | {"_class_name": "WanPipeline"}, "_class_name 'WanPipeline'.*expected FluxPipeline"),
        (INDEX | {"_class_name": ["my_pipeline", "Mine"]}, "_class_name"),
        (INDEX | {"unet": ["my_code", "Unet"]}, r"component unet is \['my_code', 'Unet'\]"),
        (INDEX | {"unet": ["os", "System"]}, "component unet"),
        (INDEX | {"unet": ["../evil", "Unet"]}, "component unet"),
        (INDEX | {"unet": ["diffusers"]}, "component unet"),
        (INDEX | {"unet": ["diffusers", "__import__"]}, "component unet"),
    ],
)
def test_an_index_that_names_other_code(folder: Path, index: dict[str, object], message: str) -> None:
    value = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BadWeightsError, match="model_index"):
        verify_folder(folder)
    manifest = parse_manifest(json.dumps(value).encode(), "x")
    rehashed = write_or_none(folder, manifest)
    assert rehashed is None or rehashed.pipeline_class == "WanPipeline"
    edit_index_into(folder, value)
    with pytest.raises(BadWeightsError, match=message):
        verify_folder(folder)


def write_or_none(folder: Path, manifest: ModelManifest) -> ModelManifest | None:
    try:
        return write_manifest(folder, model_id=manifest.model_id, modality=manifest.modality)
    except BadWeightsError:
        return None


def edit_index_into(folder: Path, value: dict[str, Any]) -> None:
    """A manifest that agrees with the changed index file but still says FluxPipeline: a deliberate forgery."""
    import hashlib
    from dataclasses import replace

    data = (folder / "model_index.json").read_bytes()
    manifest = parse_manifest(json.dumps(value).encode(), "x")
    files = tuple(
        replace(file, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()) if file.path == "model_index.json" else file
        for file in manifest.files
    )
    (folder / MANIFEST_NAME).write_bytes(replace(manifest, files=files).to_json())


def test_configurations_that_ask_for_remote_code_or_are_too_large(folder: Path) -> None:
    config = folder / "unet" / "config.json"
    config.write_text('{"auto_map": {"AutoModel": "evil.Model"}}')
    with pytest.raises(BadWeightsError, match="auto_map"):
        write_manifest(folder, model_id=ModelId("mine"), modality=Modality.IMAGE)
    config.write_text('{"a": "' + "x" * 3_000_000 + '"}')
    with pytest.raises(BadWeightsError, match=r"unet/config\.json: more than 2097152 bytes"):
        write_manifest(folder, model_id=ModelId("mine"), modality=Modality.IMAGE)


def test_a_failure_is_one_bounded_line() -> None:
    bad = failure_of(BadWeightsError("a\nb.bin", "x" * 2000, "y"), FailureKind.INTERNAL)
    assert bad.kind is FailureKind.BAD_WEIGHTS
    assert "\n" not in bad.message
    assert len(bad.message) <= REASON_CHARS_MAX
    assert failure_of(FieldError("f", 1, "2"), FailureKind.INTERNAL).kind is FailureKind.BAD_INPUT
    other = failure_of(RuntimeError("boom"), FailureKind.EXECUTION_FAILED)
    assert (other.kind, other.message) == (FailureKind.EXECUTION_FAILED, "RuntimeError: boom")


def test_reading_manifests_loads_neither_torch_nor_ray() -> None:
    program = (
        "import sys, agents, agents.engine.manifest, agents.engine.starters, agents.engine.request, "
        "agents.engine.encode, agents.engine.pipeline, agents.weights, agents.results\n"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'ray', 'PIL', 'av') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
