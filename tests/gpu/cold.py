"""What a cold start costs on this machine, leg by leg, against the priors of `atoll.physics.coldstart`.

Decides how each leg is isolated: a file's pages leave the cache of the system before its disk is measured, a process is timed from its
beginning, a load goes through the very engine of Atoll's workers. Must not know jobs. The model is SDXL at its real size, with thin text
encoders: 5.3 GB in bf16.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from atoll.model.ids import ModelId
from atoll.model.modelspec import Modality
from atoll.model.shape import Precision
from tests.gpu.subjects import SDXL_UNET, SDXL_VAE, in_bf16

SDXL = ModelId("sdxl-base-1.0")
# The same network under another name of the catalogue: for two models of one size.
OTHER = ModelId("playground-v2.5")
_COPY_BYTES = 4 * 2**30
_TRIES = 3
_GB = 1e9


def process() -> dict[str, Any]:
    """Seconds from the start of an interpreter to imports that are done, and on to a context on the device."""
    code = (
        "import json, time, psutil, os; begun = psutil.Process().create_time()\n"
        "from agents.engine.pipeline import Engine; Engine()\n"
        "import diffusers, transformers; diffusers.DiffusionPipeline, transformers.PreTrainedModel\n"
        "imported = time.time(); import torch\n"
        "free = None\n"
        "if torch.cuda.is_available():\n"
        "    torch.zeros(1, device='cuda'); torch.cuda.synchronize(); free = torch.cuda.mem_get_info()\n"
        "ready = time.time()\n"
        "print(json.dumps({'imports_s': imported - begun, 'context_s': ready - imported, 'mem_get_info': free}))"
    )
    found: list[dict[str, Any]] = []
    for _ in range(2):
        ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        found.append(json.loads(ended.stdout.splitlines()[-1]))
    return {"first": found[0], "again": found[1]}


def copies() -> dict[str, Any]:
    """Bytes a second between host and device, from pinned and from ordinary memory."""
    import torch

    found: dict[str, Any] = {}
    device = torch.empty(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    for name, pinned in (("pinned", True), ("pageable", False)):
        host = torch.empty(_COPY_BYTES, dtype=torch.uint8, pin_memory=pinned)
        host.random_(0, 255) if not pinned else host.fill_(7)
        found[f"to_device_{name}"] = _fastest(torch, lambda host=host: device.copy_(host))
        found[f"to_host_{name}"] = _fastest(torch, lambda host=host: host.copy_(device))
    other = torch.empty_like(device)
    found["on_device"] = 2 * _fastest(torch, lambda: other.copy_(device))
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    torch.matmul(a, b)
    found["matmul_flops"] = 2 * 8192**3 / _COPY_BYTES * _fastest(torch, lambda: torch.matmul(a, b))
    return found


def _fastest(torch: Any, work: Any) -> float:
    best_s = float("inf")
    for _ in range(_TRIES):
        torch.cuda.synchronize()
        begun_s = time.perf_counter()
        work()
        torch.cuda.synchronize()
        best_s = min(best_s, time.perf_counter() - begun_s)
    return _COPY_BYTES / best_s


def build_sdxl(folder: Path, device: str, *, tiny: bool = False) -> dict[str, Any]:
    """A folder that Atoll can load and the catalogue knows: the UNet and autoencoder of SDXL, and text encoders of two layers."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from agents.engine.manifest import write_manifest
    from agents.engine.quiet import quiet_loading
    from agents.engine.tiny import _clip_tokenizer

    begun_s = time.perf_counter()
    tokenizer = _clip_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    small = {"config": CLIPTextConfig(**text, hidden_size=768, intermediate_size=3072, num_attention_heads=12)}
    large = {"config": CLIPTextConfig(**text, hidden_size=1280, intermediate_size=5120, num_attention_heads=20, projection_dim=1280)}
    unet = {**SDXL_UNET, **({"transformer_layers_per_block": (1, 1, 1), "layers_per_block": 1} if tiny else {})}
    pipeline = diffusers.StableDiffusionXLPipeline(
        text_encoder=in_bf16(device, CLIPTextModel, small),
        text_encoder_2=in_bf16(device, CLIPTextModelWithProjection, large),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=in_bf16(device, diffusers.UNet2DConditionModel, unet),
        vae=in_bf16(device, diffusers.AutoencoderKL, SDXL_VAE),
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
        ),
        add_watermarker=False,
    )
    made_s = time.perf_counter() - begun_s
    shutil.rmtree(folder, ignore_errors=True)
    with quiet_loading():
        pipeline.save_pretrained(str(folder), safe_serialization=True)
    os.sync()
    saved_s = time.perf_counter() - begun_s - made_s
    manifest = write_manifest(folder, model_id=SDXL, modality=Modality.IMAGE)
    hashed_s = time.perf_counter() - begun_s - made_s - saved_s
    size = manifest.total_bytes
    return {
        "bytes": size, "made_s": made_s, "written_bytes_per_s": size / saved_s, "hashed_bytes_per_s": size / hashed_s,
    }  # fmt: skip


def twin_of(folder: Path, model_id: ModelId) -> None:
    """The same files beside the folder, under another name."""
    from agents.engine.manifest import MANIFEST_NAME, write_manifest

    other = folder.with_name(model_id)
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(folder, other, copy_function=os.link, ignore=shutil.ignore_patterns(MANIFEST_NAME))
    write_manifest(other, model_id=model_id, modality=Modality.IMAGE)


def leave_page_cache(folder: Path) -> None:
    """The next reader of these files meets the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def loads(folder: Path, device: str) -> dict[str, Any]:
    """A load by Atoll's engine from the disk and from the system's cache, with its own report, and a bare copy of the same tensors."""
    from agents.engine.pipeline import Engine

    engine = Engine()
    import diffusers

    _ = diffusers.StableDiffusionXLPipeline  # seconds of imports, which a slot's process has behind it
    precision = Precision.BF16
    found: dict[str, Any] = {}
    for name, drop in (("disk", True), ("cache", False), ("cache_again", False)):
        if drop:
            leave_page_cache(folder)
        begun_s = time.perf_counter()
        loaded = engine.load(folder, device=device, precision=precision)
        total_s = time.perf_counter() - begun_s
        report = loaded.report
        found[name] = {
            "seconds": total_s,
            "read_s": report.read_us / 1e6,
            "init_s": report.init_us / 1e6,
            "move_s": report.move_us / 1e6,
            "read_bytes": report.read_bytes,
            "disk_bytes": report.disk_bytes,
            "disk_bytes_per_s": report.disk_bytes_per_s,
            "h2d_bytes_per_s": report.h2d_bytes_per_s,
            "resident_bytes": report.resident_bytes,
        }
        loaded.unload()
    found["safetensors"] = _bare(folder, device)
    return found


def _bare(folder: Path, device: str) -> dict[str, Any]:
    """All tensors straight to the device, as safetensors does it, without modules around them."""
    import torch
    from safetensors.torch import load_file

    files = sorted(folder.rglob("*.safetensors"))
    size = sum(path.stat().st_size for path in files)
    seconds = []
    for drop in (True, False):
        if drop:
            leave_page_cache(folder)
        begun_s = time.perf_counter()
        kept = [load_file(path, device=device) for path in files]
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun_s)
        del kept
    return {"bytes": size, "from_disk_s": seconds[0], "from_cache_s": seconds[1]}


def generations(folder: Path, device: str, code: Path, *, tiny: bool = False) -> dict[str, Any]:
    """Eager, then compiled by code that is kept in `code`; a second process that finds it there shows what reading it takes."""
    from agents.engine.pipeline import Engine
    from agents.engine.request import GenerationRequest
    from atoll.packaged import load_packaged

    shape = next(model.default_shape for model in load_packaged().models if model.model_id == SDXL)
    shape = replace(shape, steps=30)
    if tiny:
        shape = replace(shape, width=64, height=64, steps=2)
    request = GenerationRequest(prompt="a lighthouse", seed=7, shape=shape)
    loaded = Engine().load(folder, device=device, precision=Precision.BF16)
    found: dict[str, Any] = {"steps": shape.steps}
    digests = []
    for name, folder_of_code in (("eager_first", None), ("eager", None), ("compiled_first", code), ("compiled", code)):
        begun_s = time.perf_counter()
        made = loaded.generate(request, code=folder_of_code)
        digests.append(made.items[0].frames[0].tobytes())
        found[name] = {
            "seconds": time.perf_counter() - begun_s,
            "denoise_s": made.denoise_us / 1e6,
            "decode_s": made.decode_us / 1e6,
            "compile_s": made.compile_us / 1e6,
            "step_s": made.step_us / 1e6,
            "peak_bytes": made.peak_device_bytes,
        }
    found["same_pixels"] = digests[0] == digests[1]
    found["largest_difference_compiled"] = max(abs(a - b) for a, b in zip(digests[1], digests[3], strict=True))
    found["code_bytes"] = sum(path.stat().st_size for path in code.rglob("*") if path.is_file())
    return found
