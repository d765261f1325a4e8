"""The steps of the check, each in a process of its own: what one leaves in the GPU's memory, or does to its context, touches no other.

Decides their order and what each is given. Must not know how results are shown.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.runtime.hardware import find_devices, gpu_type_of
from atoll.model.gpu import GpuType
from atoll.model.ids import GpuTypeId
from atoll.packaged import load_packaged

# No trial begins after this; all of them together take half of it on a GPU that does what it should.
_TRIALS_S = 240.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run of the check is: where it works and writes, on which device, and for how long models are timed."""

    work: Path
    out: Path
    device: str
    tiny: bool
    seconds: float
    models: tuple[str, ...]

    @property
    def sdxl(self) -> Path:
        """The folder of the real-sized model, where the fleet's origin store is."""
        return self.work / "fleet" / "origin" / "sdxl-base-1.0"


def card() -> tuple[str, GpuType]:
    """The first GPU's name, and its type in the catalogue; the CPU's where a try is made without one."""
    gpus = load_packaged().gpus
    devices = find_devices()
    return (devices[0].name, gpus[gpu_type_of(devices[0].name)]) if devices else ("CPU", gpus[GpuTypeId("H100-SXM")])


def machine(plan: Plan) -> dict[str, Any]:
    """What the site will say of this host, and what NVML and CUDA say beside it."""
    from agents.probes.gpus import GpuProbe
    from agents.runtime.hardware import survey
    from tests.bench.machine import describe

    found: dict[str, Any] = {"host": describe()}
    devices = find_devices() if plan.device != "cpu" else ()
    hardware = survey(devices, cpu_slots=1, slot_memory_bytes=0, cache_bytes=10**11)
    found["devices"] = [str(device) for device in devices]
    found["pools"] = [str(pool) for pool in hardware.pools]
    found["catalogue"] = str(card()[1])
    probe = GpuProbe()
    found["free_bytes"] = probe.free_bytes()
    probe.close()
    if plan.device != "cpu":
        found |= _driver()
    return found


def _driver() -> dict[str, Any]:
    import pynvml
    import torch

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    first, second = (str(pynvml.nvmlDeviceGetMemoryInfo(handle, version=version)) for version in (None, pynvml.nvmlMemory_v2))
    before = pynvml.nvmlDeviceGetMemoryInfo(handle).used
    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    found = {
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "nvml_memory": first,
        "nvml_memory_v2": second,
        "context_bytes": pynvml.nvmlDeviceGetMemoryInfo(handle).used - before,
        "mem_get_info": torch.cuda.mem_get_info(),
        "total_memory": torch.cuda.get_device_properties(0).total_memory,
        "torch": str(torch.__version__),
        "link_generation": pynvml.nvmlDeviceGetMaxPcieLinkGeneration(handle),
        "link_width": pynvml.nvmlDeviceGetMaxPcieLinkWidth(handle),
    }
    pynvml.nvmlShutdown()
    return found


def process(_: Plan) -> dict[str, Any]:
    """A slot's process: imports, and a context on the device."""
    from tests.gpu import cold

    return cold.process()


def copies(plan: Plan) -> dict[str, Any]:
    """Rates between host and device."""
    from tests.gpu import cold

    return cold.copies() if plan.device != "cpu" else {}


def build(plan: Plan) -> dict[str, Any]:
    """The real-sized model on disk, twice."""
    from tests.gpu import cold

    plan.sdxl.parent.mkdir(parents=True, exist_ok=True)
    found = cold.build_sdxl(plan.sdxl, plan.device, tiny=plan.tiny)
    cold.twin_of(plan.sdxl, cold.OTHER)
    return found


def fleet(plan: Plan) -> dict[str, Any]:
    """All trials on one site, whose slot holds one of the two real-sized models."""
    from tests.gpu import fleet as trials

    found: dict[str, Any] = {}
    size = {"width": 64, "height": 64, "steps": 4} if plan.tiny else {}
    with trials.fleet(plan.work / "fleet", gpus=plan.device != "cpu", slot_memory="9500MB", size=size) as stage:
        first_s = time.monotonic()
        for trial in trials.TRIALS:
            begun_s = time.monotonic()
            if begun_s - first_s > _TRIALS_S:
                found[trial.__name__] = {"holds": None, "seconds": 0.0, "error": "no time was left"}
                continue
            try:
                found[trial.__name__] = trial(stage) | {"holds": True}
            except Exception as error:  # noqa: BLE001 - one trial that fails hides no other
                found[trial.__name__] = {"holds": False, "error": repr(error)[:2_000], "trace": traceback.format_exc()[-4_000:]}
            found[trial.__name__]["seconds"] = time.monotonic() - begun_s
            print(trial.__name__, json.dumps(found[trial.__name__], default=str)[:600], flush=True)
        found |= stage.found
    return found


def loads(plan: Plan) -> dict[str, Any]:
    """Loads of the real-sized model by the engine."""
    from tests.gpu import cold

    return cold.loads(plan.sdxl, plan.device)


def generations(plan: Plan) -> dict[str, Any]:
    """Eager and compiled; in the second process of the two the code is there."""
    from tests.gpu import cold

    return cold.generations(plan.sdxl, plan.device, plan.work / "code", tiny=plan.tiny)


def times(plan: Plan) -> dict[str, Any]:
    """Published models at their real size against `costs predict`, until the time is over."""
    from agents.engine.quiet import prepare_environment

    prepare_environment(2)
    from tests.gpu import times as timed
    from tests.gpu.subjects import SUBJECTS

    models, (_, gpu) = load_packaged().models, card()
    found: dict[str, Any] = {}
    begun_s = time.monotonic()
    for subject in SUBJECTS:
        if plan.models and subject.model_id not in plan.models:
            continue
        if time.monotonic() - begun_s > plan.seconds:
            found[subject.model_id] = {"error": "no time was left"}
            continue
        try:
            found[subject.model_id] = timed.measure(subject, timed.spec_of(subject, models), gpu, plan.device, tiny=plan.tiny)
        except Exception as error:  # noqa: BLE001 - one model that fails hides no other
            found[subject.model_id] = {"error": repr(error)[:500], "trace": traceback.format_exc()[-3_000:]}
        timed.forget(plan.device)
        print(subject.model_id, json.dumps(found[subject.model_id], default=str)[:500], flush=True)
        (plan.out / "times.json").write_text(json.dumps(found, indent=1, default=str))
    return found


def attention(plan: Plan) -> dict[str, Any]:
    """What attention alone reaches."""
    from tests.gpu import attention as alone

    return alone.measure() if plan.device != "cpu" else {}


def compiled(plan: Plan) -> dict[str, Any]:
    """FLUX.1 as compiled code: made in the first process of the two, found in the second."""
    from agents.engine.quiet import prepare_environment

    prepare_environment(2)
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": str(plan.work / "flux"), "TRITON_CACHE_DIR": str(plan.work / "flux-triton")}
    from tests.gpu import times as timed
    from tests.gpu.subjects import SUBJECTS

    subject = next(one for one in SUBJECTS if one.model_id == "flux.1-dev")
    spec = timed.spec_of(subject, load_packaged().models)
    return timed.measure(subject, spec, card()[1], plan.device, compiled=True, tiny=plan.tiny)


STEPS: dict[str, Callable[[Plan], dict[str, Any]]] = {
    "machine": machine,
    "process": process,
    "build": build,
    "fleet": fleet,
    "copies": copies,
    "loads": loads,
    "generations": generations,
    "generations-again": generations,
    "attention": attention,
    "times": times,
    "compiled": compiled,
    "compiled-again": compiled,
}


def run_all(arguments: list[str], names: list[str], out: Path) -> dict[str, Any]:
    """Each step in a process of its own; one that fails is told and the next begins."""
    found: dict[str, Any] = {}
    for name in names:
        begun_s = time.monotonic()
        log, result = out / f"{name}.log", out / f"{name}.json"
        with log.open("wb") as opened:
            ended = subprocess.run([sys.executable, "-m", "tests.gpu", *arguments, "--step", name], stdout=opened, stderr=subprocess.STDOUT)
        seconds = time.monotonic() - begun_s
        found[name] = json.loads(result.read_text()) if result.exists() else {"error": log.read_text(errors="replace")[-1_500:]}
        print(f"gpu-check: {name} took {seconds:.0f} s{'' if ended.returncode == 0 else f' and ended with {ended.returncode}'}", flush=True)
    return found
