"""The desired state of one site: what the orchestrator sends down a site's stream.

Decides the form only. Start = an attempt appears; cancel = it is marked `stop`; acknowledge = `acked_event_seq` passes its events.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.model.adapter import AdapterSpec
from atoll.model.ids import AdapterId, AttemptKey, EventSeq, FleetId, Generation, ModelId, NodeId, SiteId, SlotRef, Term
from atoll.model.job import JobSpec
from atoll.model.modelspec import ModelSpec
from atoll.model.replica import Tier

# Where a copy should be: node, tier, slot (None: any, or not on the GPU), model.
CopyKey = tuple[NodeId, Tier, int | None, ModelId]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another site whose disks hold the weights, and where it serves them. A hint: the origin store has them too."""

    site_id: SiteId
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Peers from which weights are read at once, the one that gives most first. `origin_too`: the origin store beside them, not only when
    they fail; that alone, where there are no peers, although other nodes of the site have them."""

    peers: tuple[Peer, ...]
    origin_too: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPeer:
    """An adapter, and the site whose disks have it near by. A hint: the origin store has it too."""

    adapter_id: AdapterId
    peer: Peer


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignedAttempt:
    """One attempt the site should be running. Durations are fleet time, counted on the agent's own monotonic clock.

    `evict` names the models whose replicas leave this slot before the attempt's model is loaded.
    """

    key: AttemptKey
    spec: JobSpec
    slot: SlotRef
    evict: tuple[ModelId, ...] = ()
    stop: bool = False
    stop_reason: str = ""
    # Work without a renewal stops itself after this long; enforced where the work runs.
    stop_after_ms: int
    request_id: str = ""
    fetch_from: Sources | None = None  # where the weights are nearest, if they have to be fetched; None: the site, else the origin store
    adapters_from: tuple[AdapterPeer, ...] = ()  # of adapters that have to be fetched those that are nearest at a peer


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredReplica:
    """A copy of a model that should be on a tier (gpu, host or disk) of a node, whether or not an attempt waits for it.

    Brought only with what is idle. `index`: the slot of a copy on the GPU; None: whichever is free. `pin`: neither a cache nor an
    attempt takes it. `evict`: idle models of the slot, or weights on the node's disk, that give way for it; no others do.
    """

    model_id: ModelId
    node_id: NodeId
    index: int | None = None
    tier: Tier
    pin: bool = False
    evict: tuple[ModelId, ...] = ()
    fetch_from: Sources | None = None  # as of an attempt

    @property
    def key(self) -> CopyKey:
        """Which copy this is: a later word on the same one replaces an earlier."""
        return self.node_id, self.tier, self.index, self.model_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A snapshot (`base_generation` 0) or a delta on `base_generation`; a site that holds another generation asks for a snapshot.

    Every `models` and `adapters` entry that an attempt or a desired copy of this message needs is in it. `evict` lists models that
    should leave every tier of the site once idle. A snapshot that drops more than half of what runs is held back by the agent unless
    `confirm_shrink`.
    """

    fleet_id: FleetId
    term: Term
    generation: Generation
    base_generation: Generation = Generation(0)
    attempts: tuple[AssignedAttempt, ...] = ()
    removed: tuple[AttemptKey, ...] = ()  # of a delta: attempts that are settled
    models: tuple[ModelSpec, ...] = ()
    adapters: tuple[AdapterSpec, ...] = ()
    evict: tuple[ModelId, ...] = ()
    acked_event_seq: EventSeq = EventSeq(0)
    confirm_shrink: bool = False
    replicas: tuple[DesiredReplica, ...] = ()  # of a snapshot: all of them; of a delta: those that are new or changed
    unwanted: tuple[DesiredReplica, ...] = ()  # of a delta: no longer asked for; what is there stays until its room is needed

    @property
    def full(self) -> bool:
        """Whether this replaces everything the agent knew."""
        return self.base_generation == 0
