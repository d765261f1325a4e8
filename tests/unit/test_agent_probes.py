"""What is measured of this host reaches the core as facts of its nodes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil

from agents.core.events import AgentEvent, NodeMeasured
from agents.probes.gpus import GpuProbe
from agents.probes.host import measure
from agents.probes.prober import ProbedNode, Prober
from agents.telemetry import Metrics
from atoll.model.ids import NodeId


def test_the_host_is_measured_within_what_it_has(tmp_path: Path) -> None:
    seen = measure(tmp_path, 10**18)
    assert 0 < seen.memory_free_bytes <= psutil.virtual_memory().total
    assert 0 < seen.disk_free_bytes <= psutil.disk_usage(str(tmp_path)).total
    assert seen.sent_bytes >= 0


def test_a_cache_has_no_more_room_than_its_quota_and_need_not_exist_yet(tmp_path: Path) -> None:
    assert measure(tmp_path / "not" / "yet", 5).disk_free_bytes == 5
    assert measure(None, 7).disk_free_bytes == 7


def test_without_a_driver_there_are_no_gpus_and_no_error() -> None:
    probe = GpuProbe()
    assert probe.free_bytes() == {} or probe.present
    probe.close()
    assert not probe.present


async def test_the_prober_tells_of_each_node(tmp_path: Path) -> None:
    told: list[AgentEvent] = []
    nodes = (ProbedNode(node_id=NodeId("cpu-0")), ProbedNode(node_id=NodeId("gpu-0"), devices=("GPU-that-is-not-here",)))
    prober = Prober(nodes=nodes, cache_dir=tmp_path, cache_quota_bytes=10, metrics=Metrics())
    task = asyncio.create_task(prober.run(told.append))
    async with asyncio.timeout(20):
        while len(told) < 2:  # noqa: ASYNC110 - what is waited for is the prober's thread
            await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    prober.close()
    seen = [event for event in told if isinstance(event, NodeMeasured)]
    assert [event.node_id for event in seen] == ["cpu-0", "gpu-0"]
    assert {event.gpu_free_bytes for event in seen} == {()}
    assert all(event.disk_free_bytes == 10 for event in seen)
