"""How a real site is run: what its operator may choose, and what is right.

Decides defaults and bounds. Importing it costs nothing: no Ray, no torch.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from agents.runtime.cluster import PORT_BLOCK, ClusterSpec
from agents.runtime.slot_state import STUCK_GRACE_S
from atoll.model.errors import FieldError
from atoll.model.ids import SiteId, parse_name
from atoll.model.shape import parse_int


@dataclass(frozen=True, slots=True, kw_only=True)
class RayConfig:
    """How a real site is run. Bytes and seconds.

    `work_dir`: secret and record of the cluster, logs, open attempts; belongs to one agent at a time. `address`: an existing
    cluster that this host is a node of (then RAY_AUTH_MODE and RAY_AUTH_TOKEN of the agent's environment count); None: an own
    one. `node_ip` and `port_base` (the first of 100 ports) differ between sites of one host.
    """

    site_id: SiteId
    work_dir: Path
    cache_dir: Path
    cache_bytes: int
    address: str | None = None
    node_ip: str = "127.0.1.1"
    port_base: int = 21_000
    temp_dir: Path | None = None  # None: a folder of /tmp named after work_dir; Ray's sockets need a short path
    use_gpus: bool = True
    cpu_slots: int = 1
    slot_memory_bytes: int = 0  # what one slot's models may take; 0: all of a GPU's, on a CPU half of the host's among the slots
    threads: int = 1
    usd_micros_per_gpu_hour: int = 0
    start_timeout_s: float = 120.0
    stop_grace_s: float = 15.0
    stuck_grace_s: float = STUCK_GRACE_S
    share_compiled: bool = False  # compiled code of other sites of the fleet is executed here, and this site's is offered to them
    peer_token: str = field(default="", repr=False)  # what peer sites ask for before they give weights

    def check(self) -> RayConfig:
        """Self, if a site could be run so; else FieldError."""
        parse_name("site", self.site_id)
        parse_int("cpu_slots", self.cpu_slots, 1, PORT_BLOCK // 2)
        parse_int("threads", self.threads, 1, 1024)
        parse_int("cache_bytes", self.cache_bytes, 1, 2**62)
        parse_int("slot_memory_bytes", self.slot_memory_bytes, 0, 2**62)
        for name, path in (("work_dir", self.work_dir), ("cache_dir", self.cache_dir)):
            if not path.is_absolute():
                raise FieldError(name, str(path), "an absolute path: the slots' processes work in another folder")
        self.cluster_spec().check()
        return self

    def cluster_spec(self) -> ClusterSpec:
        """The site's own cluster."""
        mark = hashlib.sha256(os.fsencode(self.work_dir)).hexdigest()[:10]
        return ClusterSpec(
            state_dir=self.work_dir,
            node_ip=self.node_ip,
            port_base=self.port_base,
            temp_dir=self.temp_dir if self.temp_dir is not None else Path(f"/tmp/atoll-{mark}"),  # noqa: S108 - made private
            start_timeout_s=self.start_timeout_s,
            stop_grace_s=self.stop_grace_s,
        )
