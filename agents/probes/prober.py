"""The prober: looks at this host from time to time and tells the core.

Decides how often, and which node a look is about: an agent's own host is the one node of each of its pools.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents.core.events import AgentEvent, NodeMeasured
from agents.probes.gpus import GpuProbe
from agents.probes.host import HostMeasure, measure
from agents.telemetry import Metrics
from atoll.model.ids import NodeId

# Free memory decides which model fits beside which: a few seconds old is fresh enough beside loads of seconds.
INTERVAL_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedNode:
    """A node of this host, and the UUIDs of its slots' GPUs in order of index (none for a CPU)."""

    node_id: NodeId
    devices: tuple[str, ...] = ()


class Prober:
    """Measures until it is cancelled."""

    def __init__(self, *, nodes: tuple[ProbedNode, ...], cache_dir: Path | None, cache_quota_bytes: int, metrics: Metrics) -> None:
        self._nodes = nodes
        self._cache_dir = cache_dir
        self._cache_quota_bytes = cache_quota_bytes
        self._metrics = metrics
        self._gpus = GpuProbe() if any(node.devices for node in nodes) else None

    async def run(self, sink: Callable[[AgentEvent], None]) -> None:
        """A look each few seconds; the looks themselves are taken off the loop."""
        while True:
            host, gpus = await asyncio.to_thread(self._look)
            for event in self._events(host, gpus):
                sink(event)
            self._metrics.measured("memory_free", host.memory_free_bytes)
            self._metrics.measured("cache_disk_free", host.disk_free_bytes)
            self._metrics.measured("network_sent", host.sent_bytes)
            self._metrics.measured("network_received", host.received_bytes)
            await asyncio.sleep(INTERVAL_S)

    def _look(self) -> tuple[HostMeasure, dict[str, int]]:
        return measure(self._cache_dir, self._cache_quota_bytes), self._gpus.free_bytes() if self._gpus is not None else {}

    def _events(self, host: HostMeasure, gpus: dict[str, int]) -> list[NodeMeasured]:
        return [
            NodeMeasured(
                node_id=node.node_id,
                host_free_bytes=host.memory_free_bytes,
                disk_free_bytes=host.disk_free_bytes,
                gpu_free_bytes=tuple(gpus[uuid] for uuid in node.devices) if all(uuid in gpus for uuid in node.devices) else (),
            )
            for node in self._nodes
        ]

    def close(self) -> None:
        """Let go of the driver."""
        if self._gpus is not None:
            self._gpus.close()
