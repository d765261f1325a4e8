"""What an agent's core knows: slots and their replicas, nodes and their disks, attempts under way, the outbox.

Decides the form only. Everything is plain data, so that a snapshot covers all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import NamedTuple

from agents.core.outputs import AdaptReplica, PinWeights
from atoll.model.adapter import AdapterSpec
from atoll.model.assignment import AssignedAttempt, CopyKey, DesiredReplica
from atoll.model.attempt import AttemptState, ResultManifest
from atoll.model.ids import AdapterId, AttemptKey, EventSeq, FleetId, FormId, Generation, ModelId, NodeId, PoolId, SiteId, SlotRef, Term
from atoll.model.modelspec import ModelSpec
from atoll.model.replica import ReplicaState, Tier
from atoll.model.report import AttemptEvent, RateFacts
from atoll.model.site import SiteRuntime


class Ahead(IntEnum):
    """What became of a fetch that no attempt asked for."""

    QUIET = 0
    YIELDING = 1  # told to stop, because attempts fetch
    JOINED = 2  # an attempt waits for it by now


class ReplicaKey(NamedTuple):
    """What a replica is: a model, and how many slots work on it together. One that works alone serves no gang, nor the reverse."""

    model_id: ModelId
    gang_size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedAdapter:
    """An adapter on a replica, active or not. Digest and size are "" and 0 where they are unknown (found after a restart)."""

    adapter_id: AdapterId
    weights_digest: str = ""
    weights_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """A model in a slot's memory, or this slot's share of one. `weights_digest` is "" where it is unknown (found after a restart, or
    a twin's).

    `ahead`: loaded before anybody asked, and not used since: it gives way to an attempt. `adapters` are loaded on it, the least
    recently used first. `load_from_us`: when its load began.
    """

    model_id: ModelId
    state: ReplicaState
    memory_bytes: int
    weights_digest: str = ""
    ahead: bool = False
    gang_size: int = 1
    adapters: tuple[LoadedAdapter, ...] = ()
    load_from_us: int = 0

    @property
    def key(self) -> ReplicaKey:
        """What it is filed under."""
        return ReplicaKey(model_id=self.model_id, gang_size=self.gang_size)

    def evicting(self) -> Replica:
        """The same, leaving."""
        return replace(self, state=ReplicaState.EVICTING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """An attempt that this site brings to an end. Instants are the agent's fleet time, -1: not yet.

    `assigned` and `model` are None only for what was found executing after a restart and is not assigned (yet).
    A gang's attempt takes `gang_size` slots, of which `slot` is the first.
    """

    key: AttemptKey
    slot: SlotRef
    assigned: AssignedAttempt | None
    model: ModelSpec | None
    gang_size: int = 1
    adapters: tuple[AdapterSpec, ...] = ()
    state: AttemptState = AttemptState.LEASED
    steps_done: int = 0
    accepted_us: int = -1
    turn_us: int = -1  # when its slot, all slots of a gang, turned to it
    fetch_from_us: int = -1
    fetch_us: int = -1
    load_from_us: int = -1
    load_us: int = -1
    lacking_from_us: int = -1  # when nothing but adapters was missing any more
    adapt_from_us: int = -1
    adapt_us: int = -1
    run_from_us: int = -1


@dataclass(slots=True, kw_only=True)
class Slot:
    """One GPU. It loads, adapts, evicts or executes, one thing at a time; `queue` are the attempts that wait for it, as they came."""

    ref: SlotRef
    memory_bytes: int  # 0: unknown, then nothing is refused for want of memory
    ready: bool = False
    fresh: bool = False  # its process has generated nothing yet
    replicas: dict[ReplicaKey, Replica] = field(default_factory=dict)
    queue: list[AttemptKey] = field(default_factory=list)
    executing: AttemptKey | None = None
    loading_for: AttemptKey | None = None  # the attempt that the load or adaptation in flight is for; None if that one ended meanwhile
    adapting: AdaptReplica | None = None  # the adaptation in flight
    measured_free_bytes: int = -1

    @property
    def occupied(self) -> bool:
        """Whether something is going on in it."""
        return (
            self.executing is not None
            or self.adapting is not None
            or any(replica.state in (ReplicaState.LOADING, ReplicaState.EVICTING) for replica in self.replicas.values())
        )

    @property
    def used_bytes(self) -> int:
        """Memory of all replicas, those that load and leave included."""
        return sum(replica.memory_bytes for replica in self.replicas.values())

    def holds(self, model_id: ModelId) -> bool:
        """Whether any replica of a model is here, alone or as a share."""
        return any(key.model_id == model_id for key in self.replicas)

    def at_most_free(self, measured_bytes: int) -> int:
        """`measured_bytes`, cut to what the other replicas leave: a GPU holds no more than it has, whatever a meter says."""
        return min(measured_bytes, max(self.memory_bytes - self.used_bytes, 0)) if self.memory_bytes else measured_bytes


@dataclass(slots=True, kw_only=True)
class Node:
    """One host: what is on its disk and in its memory by digest, fetches and deletions under way, and what the probes measured last.

    `desired` are copies wanted ahead of demand; `paused` says until when one that failed is not tried; `pins` is what the runtime was told.
    """

    pool_id: PoolId
    node_id: NodeId
    slots: list[Slot]
    host_free_bytes: int
    disk_free_bytes: int
    disk: dict[ModelId, str] = field(default_factory=dict)
    fetching: dict[ModelId, ModelSpec] = field(default_factory=dict)
    deleting: dict[ModelId, None] = field(default_factory=dict)
    fetched_bytes: dict[ModelId, int] = field(default_factory=dict)
    host: dict[ModelId, str] = field(default_factory=dict)
    staging: dict[ModelId, None] = field(default_factory=dict)
    desired: dict[CopyKey, DesiredReplica] = field(default_factory=dict)
    paused: dict[tuple[Tier, ModelId], int] = field(default_factory=dict)
    pins: PinWeights | None = None
    disk_adapters: dict[AdapterId, str] = field(default_factory=dict)
    fetching_adapters: dict[AdapterId, AdapterSpec] = field(default_factory=dict)
    compiled: tuple[FormId, ...] = ()  # forms for which its disk holds code

    @property
    def pinned(self) -> tuple[ModelId, ...]:
        """Models with a pinned copy here, on any tier."""
        return tuple(sorted({desired.model_id for desired in self.desired.values() if desired.pin}))


@dataclass(slots=True, kw_only=True)
class State:
    """Everything. `ended` are attempts that ended here and that the orchestrator may still name: they are never run again."""

    site_id: SiteId
    runtime: SiteRuntime
    nodes: dict[NodeId, Node]
    slots: dict[SlotRef, Slot]
    fleet_id: FleetId = FleetId("")
    term: Term = Term(0)
    generation: Generation = Generation(0)
    started: bool = False
    # --- session
    connected: bool = False
    interval_us: int = 1_000_000
    scale_milli: int = 1_000
    contact_us: int = 0
    renew_due_us: int = -1
    resync_asked_us: int = -1
    snapshots_taken: int = 0  # in this session
    # --- attempts
    works: dict[AttemptKey, Work] = field(default_factory=dict)
    listed: dict[AttemptKey, AssignedAttempt] = field(default_factory=dict)
    ended: dict[AttemptKey, None] = field(default_factory=dict)
    finished: dict[AttemptKey, ResultManifest] = field(default_factory=dict)  # while no agent watched; until the first snapshot
    leaving: dict[ModelId, None] = field(default_factory=dict)
    # --- copies ahead of demand
    host_tier: bool = False
    shares_compiled: bool = False
    specs: dict[ModelId, ModelSpec] = field(default_factory=dict)  # of what is desired
    pending: dict[NodeId, None] = field(default_factory=dict)  # nodes that may lack a desired copy
    ahead: dict[tuple[NodeId, ModelId], Ahead] = field(default_factory=dict)  # fetches that began without anybody waiting for them
    # --- outbox
    outbox: dict[EventSeq, AttemptEvent] = field(default_factory=dict)
    next_event_seq: EventSeq = EventSeq(1)
    sent_event_seq: EventSeq = EventSeq(0)  # highest sent in this session
    events_sent_us: int = -1
    # --- reports
    rates: RateFacts = RateFacts()
    dirty: dict[NodeId, None] = field(default_factory=dict)
    report_seq: int = 0
    reported_us: int = -1
    prompt_us: int = -1  # when a prompt report is due; -1: none is
    full_due: bool = False
    refreshed: int = 0  # position of the rolling refresh among the nodes
