"""Sites, their pools and nodes, the links between them, and how a site's two states may change.

Decides which changes of a site are legal. `connection` is what the orchestrator observes, `admin` what the operator wants.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from atoll.model.errors import StateError
from atoll.model.ids import GpuTypeId, NodeId, PoolId, SiteId


class SiteConnection(StrEnum):
    """Whether the site speaks to us. `silent` gets no new work; `lost` has had its attempts given up."""

    CONNECTED = "connected"
    SILENT = "silent"
    LOST = "lost"


class SiteAdmin(StrEnum):
    """What the operator asked for."""

    OPEN = "open"
    CORDONED = "cordoned"
    DRAINING = "draining"
    DRAINED = "drained"
    REMOVED = "removed"


CONNECTION_TABLE: Final[dict[SiteConnection, frozenset[SiteConnection]]] = {
    SiteConnection.CONNECTED: frozenset({SiteConnection.SILENT}),
    SiteConnection.SILENT: frozenset({SiteConnection.CONNECTED, SiteConnection.LOST}),
    SiteConnection.LOST: frozenset({SiteConnection.CONNECTED}),
}

ADMIN_TABLE: Final[dict[SiteAdmin, frozenset[SiteAdmin]]] = {
    SiteAdmin.OPEN: frozenset({SiteAdmin.CORDONED, SiteAdmin.DRAINING, SiteAdmin.REMOVED}),
    SiteAdmin.CORDONED: frozenset({SiteAdmin.OPEN, SiteAdmin.DRAINING, SiteAdmin.REMOVED}),
    SiteAdmin.DRAINING: frozenset({SiteAdmin.OPEN, SiteAdmin.DRAINED, SiteAdmin.REMOVED}),
    SiteAdmin.DRAINED: frozenset({SiteAdmin.OPEN, SiteAdmin.REMOVED}),
    SiteAdmin.REMOVED: frozenset(),
}


def check_admin(site_id: SiteId, old: SiteAdmin, new: SiteAdmin) -> None:
    """StateError unless the operator may take a site from `old` to `new`."""
    if new not in ADMIN_TABLE[old]:
        raise StateError(f"site {site_id} is {old}: it cannot become {new}")


class SiteRuntime(StrEnum):
    """What executes at the site. A twin takes the time physics gives and yields results marked `simulated`."""

    RAY = "ray"
    TWIN = "twin"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """One host of a pool: its memory, its model cache on disk, how fast that disk reads and GPUs are filled."""

    host_memory_bytes: int
    disk_cache_bytes: int
    disk_bytes_per_s: int
    h2d_bytes_per_s: int = 0  # 0: as the GPU type's data sheet says


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """Identical GPUs within a site. `nodes` hosts with `gpus_per_node` each; ids of nodes are `<pool_id>-<index>`."""

    pool_id: PoolId
    gpu_type: GpuTypeId
    nodes: int
    gpus_per_node: int
    node: NodeSpec
    usd_micros_per_gpu_hour: int = 0
    gpu_memory_bytes: int = 0  # 0: as the GPU type's data sheet says

    @property
    def slots(self) -> int:
        """How many attempts the pool executes at a time."""
        return self.nodes * self.gpus_per_node

    def node_id(self, index: int) -> NodeId:
        """Id of the node with this index, from 0."""
        return NodeId(f"{self.pool_id}-{index}")


# Between nodes of a site whose operator says nothing: 25 GbE, what hosts of eight GPUs have at least.
LAN_BYTES_PER_S: Final = 3_125_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSpec:
    """A site as the operator declares it. A real agent's own pools (what it found) take the place of `pools` when it connects."""

    site_id: SiteId
    region: str
    provider: str = ""
    latitude_micro_deg: int = 0
    longitude_micro_deg: int = 0
    pools: tuple[PoolSpec, ...] = ()
    wan_bytes_per_s: int
    origin_bytes_per_s: int  # from the origin store, for the whole site
    lan_bytes_per_s: int = LAN_BYTES_PER_S  # between nodes of the site
    egress_usd_micros_per_gb: int = 0
    billing: str = "reserved"
    preemptions_per_million_gpu_hours: int = 0
    synthetic: bool = False
    weights_url: str = ""  # where other sites read the weights that its disks hold; "": it serves nobody


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSpec:
    """What one flow between two sites gets."""

    src: SiteId
    dst: SiteId
    rtt_us: int
    bytes_per_s: int
    egress_usd_micros_per_gb: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """An asked-for drain: by `deadline_us` of fleet time running work is stopped and placed elsewhere."""

    deadline_us: int
    started_us: int
    reason: str
    actor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRecord:
    """The durable part of a site: the declaration, the operator's wish and who may speak as this site."""

    spec: SiteSpec
    admin: SiteAdmin = SiteAdmin.OPEN
    reason: str = ""
    drain: Drain | None = None
    # sha256 of the one-time join token, "" once used; and of the credential the agent got for it.
    join_token_sha256: str = ""
    credential_sha256: str = ""
    created_us: int = 0
    updated_us: int = 0
    joined_us: int = 0  # when an agent first spoke as this site; 0: none ever did
    found: tuple[PoolSpec, ...] = ()  # what the last agent had, where that was not what is declared

    @property
    def pools(self) -> tuple[PoolSpec, ...]:
        """What the site has as far as is known before its agent speaks again."""
        return self.found or self.spec.pools
