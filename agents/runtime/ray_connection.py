"""The site's tie to its Ray cluster: an own one, started or found again, or one that was there; and the news of its death.

Decides whose cluster it is and when it counts as dead. Must not know slots.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import Final

import structlog

from agents.runtime import ray_driver
from agents.runtime.cluster import ClusterError, LocalCluster, start_or_find
from agents.runtime.ray_config import RayConfig
from atoll.model.ids import NodeId

_log = structlog.get_logger(__name__)

# An own cluster is watched by its processes: a look costs 0.1 ms.
_PROCESS_WATCH_S: Final = 0.2
# Another's is asked over the network.
_NODE_WATCH_S: Final = 5.0
_NODE_TIMEOUT_S: Final = 30.0
# Ray's farewell to a cluster that is dead can take long; the agent is about to leave anyway.
_DISCONNECT_TIMEOUT_S: Final = 10.0


class RayConnection:
    """Opened once, closed once."""

    def __init__(self, config: RayConfig) -> None:
        self._config = config
        self._cluster: LocalCluster | None = None
        self._connected = False
        self._groups: set[str] = set()

    @property
    def prefix(self) -> str:
        """How the names of the site's actors begin."""
        return f"atoll-slot-{self._config.site_id}-"

    def group_of(self, node_id: NodeId) -> str:
        """The name of the placement group of a node's slots."""
        self._groups.add(group := f"{self.prefix}{node_id}")
        return group

    @property
    def found(self) -> bool:
        """Whether an earlier agent's cluster goes on: then its work must survive a failed start."""
        return self._cluster is not None and self._cluster.found

    async def open(self) -> None:
        """Connect this process to the cluster. ClusterError with what to do when that cannot be."""
        config = self._config
        if config.address is None:
            self._cluster = await start_or_find(config.cluster_spec())
            address, node_ip, token = self._cluster.address, config.node_ip, self._cluster.token
        else:
            address, node_ip, token = config.address, None, None
        namespace = f"atoll-{config.site_id}"
        await asyncio.to_thread(ray_driver.connect, address=address, node_ip=node_ip, namespace=namespace, token=token)
        _take_back_sigterm()
        self._connected = True
        _log.info("ray_connected", address=address, found=self.found)

    def lives(self) -> bool:
        """Whether the cluster is alive as far as this host can tell at once."""
        return self._cluster is None or self._cluster.is_alive()

    async def died(self) -> ClusterError:
        """Returns when the cluster is dead: long before Ray would, which retries for a minute and then ends this process."""
        own = self._cluster
        while True:
            if not (own.is_alive() if own is not None else await self._node_lives()):
                break
            await asyncio.sleep(_NODE_WATCH_S if own is None else _PROCESS_WATCH_S)
        return ClusterError(f"the Ray cluster of site {self._config.site_id} died: start the agent again, it starts a new one")

    async def _node_lives(self) -> bool:
        try:
            async with asyncio.timeout(_NODE_TIMEOUT_S):
                return await asyncio.to_thread(ray_driver.is_node_alive)
        except Exception as error:  # noqa: BLE001 - Ray raises whatever its parts raise; each means the same
            _log.warning("ray_unreachable", error=str(error))
            return False

    async def close(self, *, keep_work: bool) -> None:
        """Let go. Without `keep_work` the site's actors and its own cluster end."""
        if self._connected:
            self._connected = False
            if not keep_work and self.lives():
                await asyncio.to_thread(ray_driver.kill_named, self.prefix, keep=frozenset())
                await asyncio.to_thread(ray_driver.release_seats, self._groups)
            try:
                async with asyncio.timeout(_DISCONNECT_TIMEOUT_S):
                    await asyncio.to_thread(ray_driver.disconnect)
            except TimeoutError:
                _log.warning("ray_disconnect_slow", seconds=_DISCONNECT_TIMEOUT_S)
        if self._cluster is not None and not keep_work:
            await self._cluster.stop()


def _take_back_sigterm() -> None:
    """Ray puts a handler of its own before Python's, which prints a stack and aborts the process 3 s later, whatever it is doing."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
