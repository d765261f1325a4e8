"""What an agent says: the hello, numbered reports of facts, and numbered events of attempts.

Decides the form only. Reports are soft and superseded by the next; events are kept by the agent until acknowledged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from atoll.model.attempt import AttemptState, Failure, PhaseTimes, ResultManifest
from atoll.model.ids import AdapterId, AttemptKey, EventSeq, FleetId, FormId, Generation, ModelId, NodeId, PoolId, SiteId, Term
from atoll.model.replica import ReplicaFact
from atoll.model.site import PoolSpec, SiteRuntime

# Version of the wire contract spoken here. The orchestrator accepts this one; another is refused with both numbers.
PROTOCOL_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotFacts:
    """One GPU of a node: free memory as measured, and what is resident. `ready`: its process can take work; `fresh`: it has generated
    nothing yet."""

    index: int
    memory_free_bytes: int
    ready: bool = True
    replicas: tuple[ReplicaFact, ...] = ()
    fresh: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchFact:
    """Weights on their way to a node's disk. `ahead`: no attempt waits for them, so the fetch yields to those that are waited for."""

    model_id: ModelId
    bytes_done: int
    bytes_total: int
    ahead: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """One host: free memory and disk, models held in host memory and on disk, adapters on disk, and its slots.

    `pinned`: models whose copies here nothing but an explicit evict takes. `host_tier`: its memory can hold weights for GPUs.
    `compiled`: forms for which it holds code that its own environment compiled or took over. `shares_compiled`: it takes over what other
    such nodes made, and they what it made.
    """

    pool_id: PoolId
    node_id: NodeId
    host_free_bytes: int
    disk_free_bytes: int
    host_models: tuple[ModelId, ...] = ()
    disk_models: tuple[ModelId, ...] = ()
    disk_adapters: tuple[AdapterId, ...] = ()
    slots: tuple[SlotFacts, ...]
    pinned: tuple[ModelId, ...] = ()
    fetching: tuple[FetchFact, ...] = ()
    host_tier: bool = False
    compiled: tuple[FormId, ...] = ()
    shares_compiled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RateFacts:
    """Rates measured by the site's own reads, loads and fetches, bytes per second; 0: nothing measured yet. And how many transfers of its
    kind each is made of; 0 beside a rate: an older agent, which does not count them."""

    disk_bytes_per_s: int = 0
    h2d_bytes_per_s: int = 0
    origin_bytes_per_s: int = 0
    disk_transfers: int = 0
    h2d_transfers: int = 0
    origin_transfers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptProgress:
    """Where a live attempt stands at the site. Soft."""

    key: AttemptKey
    state: AttemptState
    steps_done: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteHello:
    """First message of an agent's stream. `boot_id` differs at each start of the agent's process."""

    site_id: SiteId
    fleet_id: FleetId  # "": never joined one
    term: Term  # highest seen; 0: none
    protocol_version: int
    agent_version: str
    boot_id: str
    runtime: SiteRuntime
    pools: tuple[PoolSpec, ...]
    next_event_seq: EventSeq


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReport:
    """Numbered facts. `full` replaces all nodes known before; else only changed nodes are listed. `progress` lists every live attempt."""

    seq: int
    full: bool
    generation: Generation  # of the assignment that the site holds
    nodes: tuple[NodeFacts, ...] = ()
    progress: tuple[AttemptProgress, ...] = ()
    rates: RateFacts = RateFacts()


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEvent:
    """The end of an attempt, kept until acknowledged. `state` is succeeded, failed, refused or stopped.

    `manifest` is there exactly for succeeded, `failure` for failed and refused.
    """

    seq: EventSeq
    key: AttemptKey
    state: AttemptState
    manifest: ResultManifest | None = None
    failure: Failure | None = None
    times: PhaseTimes = PhaseTimes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """Answer to the hello. `time_scale_milli`: fleet time runs this many thousandths as fast as real time."""

    fleet_id: FleetId
    term: Term
    time_scale_milli: int
    report_interval_ms: int  # fleet time
    origin_url: str
    artifacts_url: str
    credential: str = ""  # issued once, in exchange for a join token
