"""What a host offers: its pools, its slots, and the device that each slot computes on.

Decides which catalogue type a device is. Must not know Ray. NVML is asked only when there is a driver to answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import psutil

from atoll.model.errors import AtollError, quoted
from atoll.model.gpu import CPU
from atoll.model.ids import GpuTypeId, PoolId, SlotRef
from atoll.model.site import NodeSpec, PoolSpec

# What a disk is taken to read until a load has measured it: a SATA SSD, so that nobody is promised an NVMe drive.
DISK_BYTES_PER_S: Final = 500_000_000
# What a slot's process holds of a GPU beside torch's own pool: 0.65 GB of context at its start, 0.84 GB once the kernels of eleven models
# were loaded (H100, CUDA 13.0).
_PROCESS_BYTES: Final = 900_000_000
# A host's own programs, its page cache and the slots' interpreters need the other half.
_CPU_MEMORY_SHARE: Final = 2

# Names as NVML gives them, without "NVIDIA " and "GeForce ", to types of the catalogue; the first that matches counts.
# Memory is in the name where NVIDIA sells two sizes under one.
_GPU_NAMES: Final = tuple(
    (re.compile(pattern), GpuTypeId(gpu_type))
    for pattern, gpu_type in (
        (r"GB200\b", "GB200"),
        (r"B200\b", "B200"),
        (r"H200 NVL\b", "H200-NVL"),
        (r"H200\b", "H200"),
        (r"H100 PCIe\b", "H100-PCIe"),
        (r"H100 NVL\b", "H100-NVL"),
        (r"H100 80GB HBM3\b", "H100-SXM"),
        (r"H800\b", "H800"),
        (r"H20\b", "H20"),
        (r"A100-SXM4-80GB\b", "A100-80-SXM"),
        (r"A100 80GB PCIe\b", "A100-80-PCIe"),
        (r"A100-SXM4-40GB\b", "A100-40-SXM"),
        (r"A800\b", "A800"),
        (r"L40S\b", "L40S"),
        (r"L40\b", "L40"),
        (r"L20\b", "L20"),
        (r"L4\b", "L4"),
        (r"A10G\b", "A10G"),
        (r"A10\b", "A10"),
        (r"A40\b", "A40"),
        (r"RTX PRO 6000 Blackwell\b", "RTX-PRO-6000"),
        (r"RTX 6000 Ada\b", "RTX-6000-Ada"),
        (r"RTX A6000\b", "RTX-A6000"),
        (r"RTX 5090\b(?! D)", "RTX-5090"),
        (r"RTX 4090 D\b", "RTX-4090D"),
        (r"RTX 4090\b", "RTX-4090"),
        (r"RTX 4080\b(?! SUPER)", "RTX-4080"),
        (r"RTX 3090\b(?! Ti)", "RTX-3090"),
        (r"(Tesla )?T4\b", "T4"),
        (r"(Tesla )?V100-[A-Z0-9]+-16GB\b", "V100-16"),
        (r"(Tesla )?V100-[A-Z0-9]+-32GB\b", "V100-32"),
    )
)
_PREFIXES: Final = re.compile(r"(NVIDIA )?(GeForce )?")


class HardwareError(AtollError):
    """A device of this host cannot be used; names it and what would help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU of this host as NVML tells it. `memory_bytes`: what models can get of its memory."""

    uuid: str
    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotPlan:
    """A slot and the device it sees: the UUID of a GPU, "" for a CPU."""

    ref: SlotRef
    visible_device: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a site with one host has."""

    pools: tuple[PoolSpec, ...]
    slots: tuple[SlotPlan, ...]


def gpu_type_of(name: str) -> GpuTypeId:
    """The catalogue's type of a device with this NVML name. HardwareError for one that the catalogue does not have."""
    short = _PREFIXES.sub("", name, count=1)
    for pattern, gpu_type in _GPU_NAMES:
        if pattern.match(short):
            return gpu_type
    known = ", ".join(sorted(gpu_type for _, gpu_type in _GPU_NAMES))
    raise HardwareError(f"GPU {quoted(name)} is of no type in the catalogue ({known}): run this site on its CPU (use_gpus = false)")


def find_devices() -> tuple[Device, ...]:
    """NVIDIA GPUs of this host, in NVML's order; none where there is no driver."""
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return tuple(
            Device(
                uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
                name=_text(pynvml.nvmlDeviceGetName(handle)),
                memory_bytes=_usable_bytes(pynvml, handle),
            )
            for handle in handles
        )
    except pynvml.NVMLError as error:
        raise HardwareError(f"NVML cannot tell this host's GPUs: {error}") from None
    finally:
        pynvml.nvmlShutdown()


def _usable_bytes(pynvml: Any, handle: Any) -> int:
    """The device's memory for models: without what the driver keeps for itself (half a gigabyte on large boards), nor a slot's process."""
    try:
        told = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        own_bytes = int(told.total) - int(told.reserved)
    except (pynvml.NVMLError, AttributeError, TypeError):  # a driver or a binding that does not tell the two apart
        own_bytes = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    return max(own_bytes - _PROCESS_BYTES, 1)


def survey(
    devices: tuple[Device, ...],
    *,
    cpu_slots: int,
    slot_memory_bytes: int,
    cache_bytes: int,
    usd_micros_per_gpu_hour: int = 0,
) -> Hardware:
    """Pools and slots of this host: one pool per type of GPU, or one named `cpu` without any.

    `slot_memory_bytes` is what one slot's models may take; 0: all of a GPU's memory, or without GPUs half of the host's among the slots.
    """
    host_bytes = psutil.virtual_memory().total
    node = NodeSpec(host_memory_bytes=host_bytes, disk_cache_bytes=cache_bytes, disk_bytes_per_s=DISK_BYTES_PER_S)
    if devices:
        return _gpu_hardware(devices, node, usd_micros_per_gpu_hour, slot_memory_bytes)
    pool = PoolSpec(
        pool_id=PoolId("cpu"),
        gpu_type=CPU,
        nodes=1,
        gpus_per_node=cpu_slots,
        node=node,
        usd_micros_per_gpu_hour=usd_micros_per_gpu_hour,
        gpu_memory_bytes=slot_memory_bytes or host_bytes // _CPU_MEMORY_SHARE // cpu_slots,
    )
    refs = (SlotRef(pool_id=pool.pool_id, node_id=pool.node_id(0), index=index) for index in range(cpu_slots))
    return Hardware(pools=(pool,), slots=tuple(SlotPlan(ref=ref) for ref in refs))


def _gpu_hardware(devices: tuple[Device, ...], node: NodeSpec, price: int, memory_bytes_max: int) -> Hardware:
    by_type: dict[GpuTypeId, list[Device]] = {}
    for device in devices:
        by_type.setdefault(gpu_type_of(device.name), []).append(device)
    pools, slots = [], []
    for gpu_type, found in by_type.items():
        own_bytes = min(device.memory_bytes for device in found)
        pool = PoolSpec(
            pool_id=PoolId(gpu_type.lower()),
            gpu_type=gpu_type,
            nodes=1,
            gpus_per_node=len(found),
            node=node,
            usd_micros_per_gpu_hour=price,
            gpu_memory_bytes=min(own_bytes, memory_bytes_max or own_bytes),
        )
        pools.append(pool)
        for index, device in enumerate(found):
            ref = SlotRef(pool_id=pool.pool_id, node_id=pool.node_id(0), index=index)
            slots.append(SlotPlan(ref=ref, visible_device=device.uuid))
    return Hardware(pools=tuple(pools), slots=tuple(slots))


def _text(value: Any) -> str:
    """NVML's older bindings answer in bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
