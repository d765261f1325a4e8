"""Folders that are sound models to everything but a loader: for tests of manifests and fetches, made in milliseconds."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from agents.engine.manifest import ModelManifest, write_manifest
from atoll.model.ids import ModelId
from atoll.model.modelspec import Modality


def make_model(folder: Path, name: str, payload_bytes: int = 40_000) -> ModelManifest:
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline", "name": [None, None]}))
    (folder / "unet" / "config.json").write_text("{}")
    header = json.dumps({"__metadata__": {"name": name}}).encode()
    payload = name.encode() * (payload_bytes // len(name))
    (folder / "unet" / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + payload)
    return write_manifest(folder, model_id=ModelId(name), modality=Modality.IMAGE)
