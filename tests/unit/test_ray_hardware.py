"""Pools and slots of a host from what NVML and psutil say, and the folders and ports of a site's cluster."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from agents.runtime.hardware import Device, HardwareError, find_devices, gpu_type_of, survey
from agents.runtime.ray_config import RayConfig
from atoll.catalog.gpus import parse_gpus
from atoll.data import gpus_csv
from atoll.model.errors import FieldError
from atoll.model.ids import SiteId

GIB = 2**30


@pytest.mark.parametrize(
    ("name", "gpu_type"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H200 NVL", "H200-NVL"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100-80-SXM"),
        ("NVIDIA A100 80GB PCIe", "A100-80-PCIe"),
        ("NVIDIA A100-SXM4-40GB", "A100-40-SXM"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GB200", "GB200"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA GeForce RTX 4090 D", "RTX-4090D"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX-6000-Ada"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100-16"),
        ("Tesla V100-SXM2-32GB", "V100-32"),
    ],
)
def test_a_device_is_of_the_type_that_the_catalogue_has(name: str, gpu_type: str) -> None:
    assert gpu_type_of(name) == gpu_type
    assert gpu_type in parse_gpus(gpus_csv(), "gpus.csv")


@pytest.mark.parametrize("name", ["NVIDIA GeForce GTX 1080", "NVIDIA A100-PCIE-40GB", "NVIDIA L400", "", "NVIDIA GeForce RTX 3090 Ti"])
def test_an_unknown_device_is_named_with_the_remedy(name: str) -> None:
    with pytest.raises(HardwareError, match=r"is of no type in the catalogue.*use_gpus = false") as refused:
        gpu_type_of(name)
    assert repr(name) in str(refused.value)


def test_a_host_of_two_types_has_two_pools_and_each_slot_its_own_device() -> None:
    devices = tuple(
        Device(uuid=f"GPU-{index}", name=name, memory_bytes=memory)
        for index, (name, memory) in enumerate([("NVIDIA L4", 22 * GIB), ("NVIDIA H200", 140 * GIB), ("NVIDIA L4", 23 * GIB)])
    )
    hardware = survey(devices, cpu_slots=1, slot_memory_bytes=0, cache_bytes=GIB)
    assert [(pool.pool_id, pool.gpu_type, pool.gpus_per_node, pool.gpu_memory_bytes) for pool in hardware.pools] == [
        ("l4", "L4", 2, 22 * GIB),
        ("h200", "H200", 1, 140 * GIB),
    ]
    assert [(slot.ref.node_id, slot.ref.index, slot.visible_device) for slot in hardware.slots] == [
        ("l4-0", 0, "GPU-0"),
        ("l4-0", 1, "GPU-2"),
        ("h200-0", 0, "GPU-1"),
    ]


def test_what_models_may_take_of_a_gpu_can_be_limited() -> None:
    device = Device(uuid="GPU-0", name="NVIDIA L4", memory_bytes=22 * GIB)
    for wanted, found in ((8 * GIB, 8 * GIB), (99 * GIB, 22 * GIB), (0, 22 * GIB)):
        (pool,) = survey((device,), cpu_slots=1, slot_memory_bytes=wanted, cache_bytes=GIB).pools
        assert pool.gpu_memory_bytes == found


class Driver:
    """NVML with one H100, as driver 580 told it: of the older of two answers, what the driver keeps is not taken off."""

    nvmlMemory_v2 = 2  # noqa: N815 - its name in the binding

    class NVMLError(Exception):
        """As in the binding."""

    def __init__(self, *, tells_reserved: bool) -> None:
        self.tells_reserved = tells_reserved
        self.ended = False

    def nvmlInit(self) -> None:  # noqa: N802 - as above, and below
        """Nothing to do."""

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.ended = True

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:  # noqa: N802
        return b"GPU-%d" % handle

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return "NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetMemoryInfo(self, handle: int, version: int | None = None) -> SimpleNamespace:  # noqa: N802
        if version is None:
            return SimpleNamespace(total=85_520_809_984)
        if not self.tells_reserved:
            raise self.NVMLError("not supported")
        return SimpleNamespace(total=85_520_809_984, reserved=503_316_480)


@pytest.mark.parametrize(("tells_reserved", "usable"), [(True, 85_017_493_504), (False, 85_520_809_984)])
def test_models_get_what_neither_the_driver_nor_a_process_keeps(monkeypatch: pytest.MonkeyPatch, tells_reserved: bool, usable: int) -> None:
    driver = Driver(tells_reserved=tells_reserved)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    (device,) = find_devices()
    assert (device.uuid, device.name) == ("GPU-0", "NVIDIA H100 80GB HBM3")
    assert usable - 10**9 < device.memory_bytes < usable - 650_969_088, "a context takes 0.65 GB"
    assert driver.ended


def test_a_host_without_gpus_is_a_pool_of_its_cpu() -> None:
    hardware = survey((), cpu_slots=2, slot_memory_bytes=0, cache_bytes=GIB)
    (pool,) = hardware.pools
    assert (pool.pool_id, pool.gpu_type, pool.slots, pool.node.disk_cache_bytes) == ("cpu", "cpu", 2, GIB)
    assert pool.gpu_memory_bytes == psutil.virtual_memory().total // 4
    assert [slot.ref.index for slot in hardware.slots] == [0, 1]
    assert survey((), cpu_slots=2, slot_memory_bytes=5 * GIB, cache_bytes=GIB).pools[0].gpu_memory_bytes == 5 * GIB


CONFIG = RayConfig(site_id=SiteId("alpha"), work_dir=Path("/var/atoll/work"), cache_dir=Path("/var/atoll/cache"), cache_bytes=GIB)


def test_each_site_has_a_short_folder_of_its_own_for_sockets() -> None:
    first = CONFIG.check().cluster_spec().temp_dir
    other = replace(CONFIG, work_dir=Path("/var/atoll/another")).cluster_spec().temp_dir
    assert first != other
    assert len(str(first)) < 40


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"site_id": SiteId("Alpha/1")}, r"site is 'Alpha/1'"),
        ({"node_ip": "localhost"}, r"node_ip is 'localhost': expected an IPv4 address"),
        ({"port_base": 80}, r"port_base is 80: expected a whole number from 1024"),
        ({"port_base": 65_500}, r"port_base is 65500"),
        ({"cpu_slots": 0}, r"cpu_slots is 0"),
        ({"cache_bytes": 0}, r"cache_bytes is 0"),
        ({"work_dir": Path("work")}, r"work_dir is 'work': expected an absolute path"),
        ({"temp_dir": Path("/tmp/" + "x" * 60)}, r"temp_dir is .*at most 43 bytes"),
        ({"temp_dir": Path("ray")}, r"temp_dir is 'ray'"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        replace(CONFIG, **wrong).check()  # type: ignore[arg-type]
